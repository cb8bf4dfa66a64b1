"""The gramian in units of about each gradient's length, where nothing overflows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax._typing import Gramian, Norms


class Units(NamedTuple):
    """A gramian taken apart.

    Attributes:
      gramian: The gramian of the gradients in their units: at most 1, with the
        diagonal in [1/4, 1]. Zero gradients have 1 on the diagonal and 0 elsewhere.
      units: Powers of two, at most twice the gradients' lengths; no digit is lost by
        dividing by them. 1 for zero gradients.
      silent: Which gradients are zero.
    """

    gramian: Gramian
    units: Norms
    silent: Bool[Array, " K"]


def split(gramian: Gramian) -> Units:
    """Takes out the gradients' lengths, to within a factor of two."""
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gramian), 0))
    silent = norms == 0
    exponents = jnp.frexp(jnp.where(silent, 1, norms))[1]
    units = jnp.where(silent, 1, jnp.ldexp(jnp.ones_like(norms), exponents))
    scaled = divided(gramian, units)
    scaled = jnp.where(silent[:, None] | silent[None, :], 0, scaled)
    return Units(jnp.where(jnp.diag(silent), 1, scaled), units, silent)


def divided(gramian: Gramian, lengths: Norms) -> Gramian:
    """The gramian of the gradients divided by these lengths."""
    # Some versions of XLA would divide by the product of the two, which may overflow.
    half = jax.lax.optimization_barrier(gramian / lengths[:, None])
    return half / lengths[None, :]


class Cosines(NamedTuple):
    """A gramian taken apart, with its diagonal exact to the last digit.

    Attributes:
      cosines: The gramian of the gradients divided by their lengths, with ones on the
        diagonal. Zero gradients, absent ones among them, are orthogonal to all others.
      lengths: The gradients' lengths; 1 for zero gradients.
      silent: Which gradients are zero.
    """

    cosines: Gramian
    lengths: Norms
    silent: Bool[Array, " K"]


def cosines(gramian: Gramian) -> Cosines:
    """Takes out the gradients' lengths."""
    scaled, units, silent = split(gramian)
    fractions = jnp.sqrt(jnp.diagonal(scaled))
    found = divided(scaled, fractions)
    found = jnp.where(jnp.eye(len(units), dtype=jnp.bool_), 1, found)
    return Cosines(found, units * fractions, silent)
