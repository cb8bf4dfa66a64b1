"""Building blocks for methods that average each term's gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _stages, _terms
from multiterm_optax._stages import Step


def track(rate: Callable[[jax.Array], Any]) -> optax.GradientTransformation:
    r"""Moves an average towards the updates, :math:`y \leftarrow y + r (g - y)`.

    Unlike :func:`optax.ema` it takes a rate for each step, and its start from zeros is
    not corrected.

    Args:
      rate: A function from the number of steps before this one to :math:`r`.
    """

    def init_fn(params: optax.Params) -> optax.EmaState:
        averages = jax.tree.map(_terms.zeros_like, params)
        return optax.EmaState(count=jnp.zeros([], jnp.int32), ema=averages)

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmaState]:
        del params
        share = rate(state.count)

        def move(average: jax.Array, update: jax.Array) -> jax.Array:
            return average + jnp.asarray(share, average.dtype) * (update - average)

        averages = jax.tree.map(move, state.ema, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return averages, optax.EmaState(count, averages)

    return optax.GradientTransformation(init_fn, update_fn)


def in_turn(
    name: str, num_terms: int, *stages: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """A chain of stages K -> K under one name, with nothing rounded between them."""
    tx = optax.chain(*stages)

    def update_fn(step: Step, state: Any) -> tuple[optax.Updates, Any]:
        wide = jax.tree.map(
            lambda g: g.astype(_terms.accumulator_dtype(g)), step.updates
        )
        found, state = tx.update(wide, state, step.params, **step.forwarded())
        return optax.tree.cast_like(found, step.updates), state

    return _stages.stage(name, num_terms, tx.init, update_fn)
