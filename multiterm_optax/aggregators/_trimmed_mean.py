"""The mean without the extremes, element by element."""

from functools import partial

import jax
import optax

from multiterm_optax import _checks, _stages
from multiterm_optax._stages import Step
from multiterm_optax.aggregators import _middle


def trimmed_mean(trim: int) -> optax.GradientTransformationExtraArgs:
    r"""The mean of the terms without the smallest and the largest, element by element.

    With the elements :math:`g_{(1)} \le \dots \le g_{(K)}` of the terms in order,

    .. math:: u = \frac{1}{K - 2b} \sum_{i = b + 1}^{K - b} g_{(i)} .

    It is for terms that estimate one and the same gradient, such as the losses of
    several workers or data sources; up to :math:`b` of them may be arbitrarily wrong.
    It is a mean, K times shorter than the sum of :func:`multiterm_optax.sum_terms`.

    Args:
      trim: :math:`b`, how many are left out at each end. Of 2b terms or fewer the
        median remains. With 0 it is the mean.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates [\*p] of the
      same dtypes. It is stateless. NaN counts as infinity, and so as one of the
      largest. ``update`` takes the extra argument ``present``, K booleans: K is then
      the number of the present terms.

    Raises:
      TypeError: ``trim`` is not a static int.
      ValueError: ``trim`` is negative, or an update lacks the leading term axis.

    Source:
      Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning:
      Towards Optimal Statistical Rates", ICML 2018, Definition 2, with
      :math:`b = \beta m` for their :math:`m` workers.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import trimmed_mean
      >>> tx = trimmed_mean(1)
      >>> grads = jnp.array([[1.0, 7.0], [2.0, -9.0], [-99.0, 1.0], [3.0, 2.0]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> updates.tolist()
      [1.5, 1.5]
    """
    name = "trimmed_mean"
    trim = _checks.static_int(trim, "trim", name, low=0)

    def update_fn(
        step: Step, state: optax.EmptyState
    ) -> tuple[optax.Updates, optax.EmptyState]:
        middle = partial(_middle.mean_of_middle, step.present, trim=trim)
        return jax.tree.map(middle, step.updates), state

    return _stages.stage(
        name, None, optax.init_empty_state, update_fn, checks_state=False
    )
