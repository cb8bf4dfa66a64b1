"""Random orders of the terms, for methods that go through them one after another."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def draw(key: jax.Array, impl: Any, num_terms: int) -> tuple[Int[Array, "K K"], Any]:
    """An order of all terms for each term, and the data of the next step's key."""
    later, now = jax.random.split(jax.random.wrap_key_data(key, impl=impl))
    each = jnp.arange(num_terms)
    orders = jax.random.permutation(
        now, jnp.tile(each, (num_terms, 1)), axis=1, independent=True
    )
    return orders, jax.random.key_data(later)
