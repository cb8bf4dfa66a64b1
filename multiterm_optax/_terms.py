"""Algebra on the term axis: norms, masks, scaling, sums and maxima.

Every function takes leaves ``[K, *p]``, accumulates in at least float32, and never
reshapes a leaf that may be sharded, since that would move its data between devices.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Shaped

from multiterm_optax import _shardings
from multiterm_optax._typing import Leaf, Mixing, Norms, Scalar, TermLeaf, Weights


def accumulator_dtype(*leaves: jax.typing.ArrayLike) -> jnp.dtype:
    """Float32, or float64 if a leaf has it."""
    return jnp.result_type(jnp.float32, *(jnp.result_type(leaf) for leaf in leaves))


def zeros_per_term(
    param: jax.typing.ArrayLike, num_terms: int, dtype: Any = None
) -> TermLeaf:
    """Zeros [K, *p] that keep the parameter's sharding on the axes of ``*p``.

    ``dtype`` None: that of the accumulator.
    """
    zeros = zeros_like(param, dtype)
    return jnp.broadcast_to(zeros, (num_terms, *zeros.shape))


def zeros_like(param: jax.typing.ArrayLike, dtype: Any = None) -> Leaf:
    """Zeros [*p] that keep the parameter's sharding, inside a jit too.

    ``dtype`` None: that of the accumulator.
    """
    zeros = jnp.zeros_like(param, dtype=dtype or accumulator_dtype(param))
    if not isinstance(param, Tracer):
        return zeros
    # Constants carry no mesh, and a compiled init would leave them on one device. This
    # use of the parameter tells XLA where they belong, and is then optimised away.
    return jnp.where(jnp.isnan(param), zeros, zeros)


def squared_norms(leaf: TermLeaf) -> Norms:
    """Squared l2 norm of each term's part of one leaf."""
    wide = leaf.astype(accumulator_dtype(leaf))
    squared = jnp.sum(wide * wide, axis=tuple(range(1, leaf.ndim)))
    if _shardings.over_devices(leaf):  # K numbers, to be compared with one another
        squared = jax.sharding.reshard(squared, _shardings.sharding(leaf))
    return squared


def dots(leaf: TermLeaf, other: Leaf) -> Norms:
    """Dot product of each term's part of one leaf with another array."""
    wide = leaf.astype(accumulator_dtype(leaf, other))
    products = jnp.sum(wide * other[None], axis=tuple(range(1, leaf.ndim)))
    if _shardings.over_devices(leaf):
        products = jax.sharding.reshard(products, _shardings.sharding(leaf))
    return products


def only_present(present: Bool[Array, " K"] | None, leaf: TermLeaf) -> TermLeaf:
    """Zeros in place of absent terms, whatever they hold; None: all are present."""
    if present is None:
        return leaf
    return jnp.where(_each(present, leaf), leaf, jnp.zeros([], leaf.dtype))


def keep_absent(
    present: Bool[Array, " K"] | None,
    new: Shaped[Array, "K ..."],
    old: Shaped[Array, "K ..."],
) -> Shaped[Array, "K ..."]:
    """The new values of the present terms, the old ones of absent terms."""
    if present is None:
        return new
    return jnp.where(_each(present, new), new, old)


def _each(present: Bool[Array, " K"], leaf: TermLeaf) -> Bool[Array, "K ..."]:
    # On explicit mesh axes a condition must be sharded like what it selects from.
    mask = present.reshape(-1, *(1,) * (leaf.ndim - 1))
    return mask & jnp.ones_like(leaf, dtype=bool)


def mix(weights: Weights | Mixing, leaf: TermLeaf) -> TermLeaf:
    """Weights [K] scale the terms; a matrix [K, K] mixes them."""
    if weights.ndim == 1:
        return scale(weights, leaf)
    wide = _shardings.on_one_device(leaf.astype(accumulator_dtype(leaf, weights)))
    mixed = jnp.tensordot(weights.astype(wide.dtype), wide, 1, precision="highest")
    if _shardings.over_devices(leaf):
        mixed = jax.sharding.reshard(mixed, jax.typeof(leaf).sharding)
    return mixed.astype(leaf.dtype)


def scale(factors: Float[Array, " K"], leaf: TermLeaf) -> TermLeaf:
    """Multiplies each term by its factor, in the leaf's dtype."""
    wide = factors.astype(accumulator_dtype(leaf, factors))
    scaled = wide.reshape(-1, *(1,) * (leaf.ndim - 1)) * leaf
    return scaled.astype(leaf.dtype)


def quotient(numerator: Array, denominator: Array) -> Array:
    """The ratio, or 0 where the denominator is 0."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1), 0)


def root(values: Array) -> Array:
    """The square root, whose derivative is 0, and not infinite, where it is 0.

    An outer derivative multiplies it by that of the squares, which is 0 there, and the
    product would otherwise be NaN.
    """
    zero = values == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, values)))


def bias_correction(decay: Scalar, step_count: jax.Array) -> jax.Array:
    """``1 - decay**step_count``, by which a moving average from zero is divided."""
    # In float32 the difference loses most of its digits. If the decay is known, expm1
    # of its logarithm in double precision keeps them.
    steps = step_count.astype(jnp.result_type(float))
    if isinstance(decay, Tracer):
        return -jnp.expm1(steps * jnp.log(decay))
    with np.errstate(divide="ignore"):
        return -jnp.expm1(steps * float(np.log(np.float64(decay))))


def sum_terms(leaf: TermLeaf) -> Leaf:
    """Sum over the term axis, accumulated wide, in the leaf's dtype."""
    wide = leaf.astype(accumulator_dtype(leaf))
    return sum_of_terms(lambda x: x, wide).astype(leaf.dtype)


def sum_of_terms(f: Callable[..., Array], *leaves: TermLeaf) -> Leaf:
    """Sum over the terms of an elementwise function of their leaves."""
    return _over_terms(jnp.add, jnp.sum, f, *leaves)


def max_terms(leaf: TermLeaf) -> Leaf:
    """Maximum over the term axis."""
    return _over_terms(jnp.maximum, jnp.max, lambda x: x, leaf)


def _over_terms(
    combine: Callable[[Array, Array], Array],
    over_axis: Callable[..., Array],
    f: Callable[..., Array],
    *leaves: Shaped[Array, "K ..."],
) -> Array:
    # XLA:CPU reduces a leading axis 10 to 15 times slower than it adds slices, and
    # writes out what it has to slice, so that slices come first and f after. On
    # accelerators a reduction is faster.
    if leaves[0].shape[0] == 1:
        return f(*(leaf[0] for leaf in leaves))
    if any(map(_shardings.over_devices, leaves)):
        return over_axis(f(*leaves), axis=0)
    return jax.lax.platform_dependent(
        *leaves,
        cpu=lambda *xs: _combine_slices(combine, f, *xs),
        default=lambda *xs: over_axis(f(*xs), axis=0),
    )


def _combine_slices(
    combine: Callable[[Array, Array], Array],
    f: Callable[..., Array],
    *leaves: Shaped[Array, "K ..."],
) -> Array:
    num_terms = leaves[0].shape[0]
    if num_terms <= 16:
        parts = [f(*(leaf[i] for leaf in leaves)) for i in range(num_terms)]
        return reduce(combine, parts)
    # Halving keeps the program short, and so its compile time, for many terms.
    half = num_terms // 2
    low, high = ([leaf[s] for leaf in leaves] for s in (slice(half), slice(half, None)))
    if num_terms % 2:
        first = f(*(leaf[0] for leaf in leaves))
        rest = _combine_slices(combine, f, *(leaf[1:] for leaf in leaves))
        return combine(first, rest)
    folded = combine(f(*low), f(*high))
    return _combine_slices(combine, lambda x: x, folded)


def weighted_sum(weights: Weights | Mixing, leaf: TermLeaf) -> Leaf:
    """The sum of the terms after :func:`mix`, without making the mixed terms."""
    total = weights if weights.ndim == 1 else jnp.sum(weights, axis=0)
    wide = leaf.astype(accumulator_dtype(leaf, total))
    if _shardings.over_devices(leaf):
        return sum_terms(scale(total, wide)).astype(leaf.dtype)
    summed = jnp.tensordot(total.astype(wide.dtype), wide, 1, precision="highest")
    return summed.astype(leaf.dtype)
