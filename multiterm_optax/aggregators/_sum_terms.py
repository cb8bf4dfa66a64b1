"""The simplest aggregator, the sum of the terms."""

import jax
import optax

from multiterm_optax import _stages, _terms
from multiterm_optax._stages import Step


def sum_terms() -> optax.GradientTransformationExtraArgs:
    r"""Adds up the terms: :math:`u = \sum_i g_i`.

    It is the sum, not the mean, because the sum of the gradients is the gradient of the
    summed loss. It is accumulated in at least float32.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates [\*p] of the
      same dtypes. It is stateless. ``update`` takes the extra argument ``present``, K
      booleans: absent terms are left out of the sum.

    Raises:
      ValueError: An update has no term axis. If ``update`` is given ``params``, the
        full shape is checked; otherwise only that the update has an axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import sum_terms
      >>> tx = sum_terms()
      >>> updates, _ = tx.update(jnp.array([[1.0, 2.0], [10.0, 20.0]]), tx.init(None))
      >>> updates.tolist()
      [11.0, 22.0]
    """

    def update_fn(
        step: Step, state: optax.EmptyState
    ) -> tuple[optax.Updates, optax.EmptyState]:
        return jax.tree.map(_terms.sum_terms, step.updates), state

    return _stages.stage(
        "sum_terms", None, optax.init_empty_state, update_fn, checks_state=False
    )
