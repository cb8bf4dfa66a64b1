"""Losses and the ray of a preference, in the space of the losses."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from multiterm_optax._typing import Losses


def unit(vector: Losses) -> tuple[Losses, Float[Array, ""]]:
    """The direction of a vector, and its length; of zeros both are zero."""
    relative, exponent = _relative(vector)
    length = jnp.sqrt(_dot(relative, relative))
    return relative / jnp.where(length > 0, length, 1), jnp.ldexp(length, exponent)


def across(vector: Losses, other: Losses) -> Losses:
    """The part of a vector's direction across another's; zero where it is rounding."""
    (a, _), (b, _) = _relative(vector), _relative(other)
    lengths = jnp.sqrt(_dot(a, a)) * _dot(b, b)
    # (b.b) a - (a.b) b, in which equal products cancel without a rounding.
    outer = a[:, None] * b[None, :]
    part = _dot(outer - outer.T, b) / jnp.where(lengths > 0, lengths, 1)
    rounding = 4 * len(part) * float(jnp.finfo(part.dtype).eps)
    return jnp.where(jnp.max(jnp.abs(part)) > rounding, part, 0)


def _relative(vector: Losses) -> tuple[Losses, Array]:
    """In units of a power of two, in which no square over- or underflows."""
    exponent = jnp.frexp(jnp.max(jnp.abs(vector)))[1]
    return jnp.ldexp(vector, -exponent), exponent


def _dot(a: Array, b: Losses) -> Array:
    return jnp.matmul(a, b, precision="highest")
