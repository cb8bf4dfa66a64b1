"""Dual balancing: one weight from the gradients, shared out by the losses."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _averages, _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax.transforms import _statistics


class DualBalancedState(NamedTuple):
    """State of :func:`dual_balanced`.

    Attributes:
      averages: Means of the weights so far [K], which are those of the last step,
        except that an absent term keeps its own. 1 before the first step.
      losses: Means of the losses so far [K].
      seen: Number of steps in these means, int32 [K].
    """

    averages: jax.Array
    losses: jax.Array
    seen: jax.Array


def dual_balanced(
    num_terms: int, *, anchor: int | str = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Weights conditions against the residual, and among themselves (DB-PINN).

    The anchor :math:`a` keeps the weight 1. The conditions, all other terms, get one
    weight from the gradients, shared out by each loss over its mean so far:

    .. math::

      \hat\lambda_i = \Bigl( \sum_{j \ne a} \frac{\max \lvert g_a \rvert}
      {\operatorname{mean} \lvert g_j \rvert} \Bigr)
      \frac{I_i}{\sum_{j \ne a} I_j}, \qquad I_i = \frac{L_i}{\bar L_i}, \qquad
      \lambda_i \leftarrow \lambda_i + \frac1t \bigl( \hat\lambda_i - \lambda_i \bigr) .

    Args:
      num_terms: K, the number of terms.
      anchor: The residual, by its index or by its name in the losses; 0 is the first
        of the sorted names.

    Returns:
      A transformation of updates, every leaf [K, \*p], that keeps their shapes and
      dtypes. ``update`` needs ``losses``, whose magnitudes count, and takes
      ``present``, K booleans. A term whose gradient is zero, or that is not finite, has
      no part in a step and keeps its means; so do all terms while this holds for the
      anchor or the anchor is absent.

    Raises:
      ValueError: ``anchor`` is out of range, ``losses`` are missing, or there is no
        term axis.

    Source:
      Zhou, Chen, Yang and Png, "Dual-Balancing for Physics-Informed Neural Networks",
      IJCAI 2025, in the form with maximum and mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import dual_balanced
      >>> tx = dual_balanced(num_terms=3)
      >>> grads = jnp.array([[6.0, -10.0], [1.0, -3.0], [10.0, 10.0]])
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(grads, state, losses=jnp.array([1.0, 2.0, 5.0]))
      >>> [round(float(w), 4) for w in state.averages]  # 10 / 2 + 10 / 10, in halves
      [1.0, 3.0, 3.0]
    """
    name = "dual_balanced"
    num_terms = _checks.num_terms(num_terms, name)
    anchor = _checks.term(anchor, "anchor", name, num_terms)

    def init_fn(params: optax.Params) -> DualBalancedState:
        del params
        dtype = jnp.result_type(float)
        return DualBalancedState(
            averages=jnp.ones((num_terms,), dtype),
            losses=jnp.zeros((num_terms,), dtype),
            seen=jnp.zeros((num_terms,), jnp.int32),
        )

    def update_fn(
        step: Step, state: DualBalancedState
    ) -> tuple[optax.Updates, DualBalancedState]:
        leaves = jax.tree.leaves(step.updates)
        given: Any = step.losses_vector(name, num_terms, needed=True)
        losses = jnp.abs(jax.lax.stop_gradient(given)).astype(state.losses.dtype)
        chosen = _checks.term_at(anchor, "anchor", name, num_terms)
        size = _statistics.largest(leaves, num_terms)[chosen]
        means = _statistics.mean(leaves, num_terms)

        known = (means > 0) & jnp.isfinite(means) & jnp.isfinite(losses)
        known = known & (size > 0) & jnp.isfinite(size)
        known = known & (jnp.arange(num_terms) != chosen)
        if step.present is not None:
            known = known & step.present
        seen = jnp.asarray(optax.safe_increment(state.seen))
        count = seen.astype(losses.dtype)
        average = state.losses + (losses - state.losses) / count
        total = jnp.sum(jnp.where(known, _averages.ratio(size, means), 0))
        # A loss that has always been zero is neither hard nor easy.
        left = jnp.where(average > 0, _averages.ratio(losses, average), 1)
        left = jnp.where(known, left, 0)
        every = jnp.sum(left)
        shares = jnp.where(every > 0, left / jnp.where(every > 0, every, 1), 0)
        found = jnp.minimum(total, _averages.LARGEST) * shares
        # The 1 before the first step is not part of the mean.
        before = jnp.where(state.seen > 0, state.averages, 0)
        moved = before + (found.astype(losses.dtype) - before) / count

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(known, new.astype(old.dtype), old)

        after = DualBalancedState(
            averages=keep(moved, state.averages),
            losses=keep(average, state.losses),
            seen=keep(seen, state.seen),
        )
        return jax.tree.map(partial(_terms.scale, after.averages), step.updates), after

    return _stages.stage(name, num_terms, init_fn, update_fn)
