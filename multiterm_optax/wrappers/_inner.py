"""Helpers for wrappers that may skip a step of their inner transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from multiterm_optax import _checks
from multiterm_optax._typing import Losses


def step_or_hold(
    is_taken: jax.Array,
    take: Callable[[Any], tuple[Any, Any]],
    updates: Any,
    state: Any,
    name: str,
) -> tuple[Any, Any]:
    """Returns ``take(state)``, or zero updates [*p] and ``state`` unchanged."""
    shapes, new_state = jax.eval_shape(take, state)
    _checks.term_axis_removed(shapes, updates, name)
    _checks.state_keeps_shapes(state, new_state, f"{name}: a stage of inner")

    def hold(held: Any) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, shapes), held  # zeros with the shardings

    return jax.lax.cond(is_taken, take, hold, state)


def losses_like(losses: Any, values: Losses) -> Any:
    """``values`` [K] in the structure and the floating dtypes of the user's losses."""
    leaves, structure = jax.tree.flatten(losses)
    parts = [values] if jnp.ndim(leaves[0]) else list(values)

    def cast(value: jax.Array, leaf: Any) -> jax.Array:
        dtype = jnp.result_type(leaf)
        return value.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else value

    return structure.unflatten(
        [cast(value, leaf) for value, leaf in zip(parts, leaves, strict=True)]
    )
