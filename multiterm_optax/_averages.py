"""Moving averages over the steps, and the ratios of sizes that they average."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

# Ratios of two sizes are capped, so that their products with gradients stay finite.
LARGEST = 1e30


def ratio(numerators: jax.Array, *divisors: jax.Array) -> jax.Array:
    """The quotient, at most ``LARGEST``; a divisor of 0 counts as 1."""
    for divisor in divisors:
        numerators = numerators / jnp.where(divisor > 0, divisor, 1)
    return jnp.minimum(numerators, LARGEST)


def newest_share(decay: Any, seen: Int[Array, " K"]) -> Float[Array, " K"]:
    """``(1 - decay) / (1 - decay**seen)``, where ``seen`` counts the newest value, too.

    ``average + share * (value - average)`` is the new average.
    """
    if isinstance(decay, Tracer):
        rate = jnp.log(decay)
    else:
        with np.errstate(divide="ignore"):
            rate = float(np.log(np.float64(decay)))
    steps = jnp.maximum(seen, 1).astype(jnp.result_type(float))
    return jnp.expm1(rate) / jnp.expm1(steps * rate)


def toward(
    decay: Any, new: jax.Array, old: jax.Array, known: jax.Array | bool = True
) -> jax.Array:
    """The plain moving average from ``old``, which stays where nothing is known."""
    moved = decay * old + (1 - decay) * new
    return jnp.where(known, moved, old).astype(old.dtype)
