"""What methods do about the terms that are absent from a step.

Each leaves its program as it is where ``present`` is None.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multiterm_optax import _terms
from multiterm_optax._typing import Scalar, Weights


def number(present: Bool[Array, " K"] | None, num_terms: int) -> Scalar:
    """How many terms are there; 1 if none is, so that it can divide."""
    return num_terms if present is None else jnp.maximum(jnp.sum(present), 1)


def equal_shares(present: Bool[Array, " K"] | None, like: Weights) -> Weights | float:
    """One over the number of the terms that are there, for each of them."""
    if present is None:
        return 1 / like.size
    there = _terms.only_present(present, jnp.ones_like(like))
    return there / number(present, like.size)


def mean(present: Bool[Array, " K"] | None, values: Float[Array, " K"]) -> Scalar:
    """The mean over the terms that are there."""
    if present is None:
        return jnp.mean(values)
    return jnp.sum(_terms.only_present(present, values)) / number(present, values.size)


def greatest(
    present: Bool[Array, " K"] | None, values: Float[Array, " K"]
) -> jax.Array:
    """The maximum over the terms that are there; minus infinity if none is."""
    if present is None:
        return jnp.max(values)
    return jnp.max(values, where=present, initial=-jnp.inf)


def keep(present: Bool[Array, " K"] | None, new: jax.Array, old: jax.Array) -> Any:
    """A state [..., K] that moves on where a term is there, and else stays."""
    return new if present is None else jnp.where(present, new, old)


def keep_optimizer(
    present: Bool[Array, " K"] | None,
    new: Any,
    old: Any,
    init: Callable[[Any], Any],
    weights: Weights,
) -> Any:
    """As :func:`keep`, of the state of an optimizer that learns one number a term.

    What grows with K belongs to the terms; a count of steps, which does not, moves on.
    """
    if present is None:
        return new
    more = jax.eval_shape(init, jnp.zeros((weights.size + 1,), weights.dtype))

    def keep_leaf(new: Any, old: Any, more: Any) -> Any:
        for axis, (size, larger) in enumerate(
            zip(jnp.shape(new), more.shape, strict=True)
        ):
            if size != larger:
                trailing = (1,) * (len(more.shape) - axis - 1)
                new = jnp.where(present.reshape(-1, *trailing), new, old)
        return new

    return jax.tree.map(keep_leaf, new, old, more)
