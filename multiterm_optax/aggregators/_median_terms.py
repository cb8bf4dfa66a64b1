"""The median of the terms, element by element."""

import jax
import optax

from multiterm_optax import _stages
from multiterm_optax._stages import Step
from multiterm_optax._typing import Leaf, TermLeaf
from multiterm_optax.aggregators import _middle


def median_terms() -> optax.GradientTransformationExtraArgs:
    r"""The median of the terms, element by element.

    For an even number of terms it is the mean of the two in the middle.

    It is for terms that estimate one and the same gradient, such as the losses of
    several workers or data sources; fewer than half of them may be arbitrarily wrong.
    It has the size of one term, not of their sum. With two terms it is the mean; with
    terms that pull in different directions, it follows only the majority.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates [\*p] of the
      same dtypes. It is stateless. NaN counts as infinity, and so as one of the
      largest. ``update`` takes the extra argument ``present``, K booleans: the median
      is that of the present terms.

    Raises:
      ValueError: An update lacks the leading term axis.

    Source:
      Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning:
      Towards Optimal Statistical Rates", ICML 2018, Definition 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import median_terms
      >>> tx = median_terms()
      >>> grads = jnp.array([[1.0, -3.0], [2.0, 0.0], [90.0, 4.0]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> updates.tolist()
      [2.0, 0.0]
    """

    def update_fn(
        step: Step, state: optax.EmptyState
    ) -> tuple[optax.Updates, optax.EmptyState]:
        def median(leaf: TermLeaf) -> Leaf:
            return _middle.mean_of_middle(step.present, leaf, trim=len(leaf))

        return jax.tree.map(median, step.updates), state

    return _stages.stage(
        "median_terms", None, optax.init_empty_state, update_fn, checks_state=False
    )
