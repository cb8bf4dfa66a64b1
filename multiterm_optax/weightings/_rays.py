"""Losses and the ray of a preference, in the space of the losses."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from multiterm_optax._typing import Losses


def unit(vector: Losses) -> tuple[Losses, Float[Array, ""]]:
    """The direction of a vector, and its length; of zeros both are zero."""
    largest = jnp.max(jnp.abs(vector))
    relative = vector / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(relative * relative))
    return relative / jnp.where(length > 0, length, 1), largest * length


def across(direction: Losses, other: Losses) -> Losses:
    """The part of a unit vector across another; zero where it is rounding only."""
    part = direction - (direction @ other) * other
    rounding = 4 * len(part) * float(jnp.finfo(part.dtype).eps)
    return jnp.where(jnp.max(jnp.abs(part)) > rounding, part, 0)
