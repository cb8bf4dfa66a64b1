"""Numbers [K] that say how large each term's gradient is, over all parameters.

They are constants to an outer derivative, and nothing is squared that could overflow.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from multiterm_optax import _shardings
from multiterm_optax._terms import accumulator_dtype

Leaves = Sequence[Shaped[Array, "K ..."]]
ByTerm = Float[Array, " K"]


def largest(leaves: Leaves, num_terms: int) -> ByTerm:
    """The largest absolute value of each term's gradient."""
    found = jnp.zeros(num_terms, accumulator_dtype(*leaves))
    for leaf in leaves:
        found = jnp.maximum(found, _reduce(_max, jnp.abs(leaf)).astype(found.dtype))
    return jax.lax.stop_gradient(found)


def mean(leaves: Leaves, num_terms: int) -> ByTerm:
    """The mean absolute value of each term's gradient."""
    return jax.lax.stop_gradient(_mean([jnp.abs(leaf) for leaf in leaves], num_terms))


def deviation(leaves: Leaves, num_terms: int) -> ByTerm:
    """The standard deviation of each term's gradient, over all its elements."""
    units = _units(largest(leaves, num_terms))
    scaled = [leaf.astype(units.dtype) / _over(units, leaf) for leaf in leaves]
    middle = _mean(scaled, num_terms)
    squares = [jnp.square(leaf - _over(middle, leaf)) for leaf in scaled]
    return jax.lax.stop_gradient(units * jnp.sqrt(_mean(squares, num_terms)))


def _mean(leaves: Leaves, num_terms: int) -> ByTerm:
    total = jnp.zeros(num_terms, accumulator_dtype(*leaves))
    count = max(sum(math.prod(leaf.shape[1:]) for leaf in leaves), 1)
    for leaf in leaves:
        # Divided first: a sum of many large numbers might overflow.
        total = total + _reduce(jnp.sum, leaf.astype(total.dtype) / float(count))
    return total


def _max(leaf: Array, axis: tuple[int, ...]) -> Array:
    return jnp.max(leaf, axis=axis, initial=0)


def _reduce(over: Callable[..., Array], leaf: Shaped[Array, "K ..."]) -> Array:
    found = over(leaf, axis=tuple(range(1, leaf.ndim)))
    if _shardings.over_devices(leaf):  # K numbers, to be compared with one another
        found = jax.sharding.reshard(found, _shardings.sharding(leaf))
    return found


def _units(sizes: ByTerm) -> ByTerm:
    """Powers of two, by which division loses no digit, within a factor of two."""
    nonzero = (sizes > 0) & jnp.isfinite(sizes)
    exponents = jnp.frexp(jnp.where(nonzero, sizes, 1))[1]
    return jnp.ldexp(jnp.ones_like(sizes), exponents - 1)


def _over(values: ByTerm, leaf: Shaped[Array, "K ..."]) -> Array:
    """K numbers in a shape that broadcasts to a leaf [K, *p]."""
    return values.reshape(-1, *(1,) * (leaf.ndim - 1))
