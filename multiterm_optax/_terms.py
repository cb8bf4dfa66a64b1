"""Algebra on the term axis: norms, gramian, scaling, sums and maxima.

Every function takes leaves ``[K, *p]``, accumulates in at least float32, and
never reshapes a leaf, so that sharded leaves stay where they are.
"""

import math
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from multiterm_optax._typing import Gramian, Leaf, Mixing, Norms, TermLeaf, Weights

# Up to this many terms a gramian is made of pairs of terms, beyond by a matrix product.
_MAX_PAIRED = 10

# Vectors of up to this many elements are cut into blocks by a copy.
_MAX_COPIED = 1 << 16


def accumulator_dtype(*leaves: jax.typing.ArrayLike) -> jnp.dtype:
    """At least float32, float64 where a leaf is."""
    return jnp.result_type(jnp.float32, *(jnp.result_type(leaf) for leaf in leaves))


def zeros_per_term(param: jax.typing.ArrayLike, num_terms: int, dtype) -> TermLeaf:
    """Zeros [K, *p] that keep the parameter's sharding on the axes of ``*p``."""
    zeros = jnp.zeros_like(param, dtype=dtype)
    return jnp.broadcast_to(zeros, (num_terms, *zeros.shape))


def squared_norms(leaf: TermLeaf) -> Norms:
    """Squared l2 norm of each term's part of one leaf."""
    wide = leaf.astype(accumulator_dtype(leaf))
    return jnp.sum(wide * wide, axis=tuple(range(1, leaf.ndim)))


def gramian(*leaves: Shaped[Array, "K ..."], num_terms: int) -> Gramian:
    """Dot products of the terms' gradients, summed over leaves."""
    dtype = accumulator_dtype(*leaves)
    total = jnp.zeros((num_terms, num_terms), dtype)
    for leaf in leaves:
        total = total + _gramian(leaf.astype(dtype))
    return total


def gramian_of_rows(*leaves: tuple[Array, ...], num_terms: int) -> Gramian:
    """As :func:`gramian`, of leaves that are not stacked: K arrays each, few terms."""
    pairs = [(i, j) for i in range(num_terms) for j in range(i, num_terms)]
    dtype = accumulator_dtype(*(rows[0] for rows in leaves))
    upper = {pair: jnp.zeros([], dtype) for pair in pairs}
    for rows in leaves:
        wide = [row.astype(dtype) for row in rows]
        for i, j in pairs:
            upper[i, j] = upper[i, j] + jnp.sum(wide[i] * wide[j])
    every = [
        upper[min(i, j), max(i, j)] for i in range(num_terms) for j in range(num_terms)
    ]
    return jnp.stack(every).reshape(num_terms, num_terms)


def _gramian(leaf: TermLeaf) -> Gramian:
    num_terms = leaf.shape[0]
    if num_terms > _MAX_PAIRED:
        return _gramian_by_blocks(leaf)
    # Few terms: reducing the products of all pairs needs no copy of the gradients, is
    # as fast as a thin matrix product on CPU, and keeps its digits on long leaves.
    axes = tuple(range(2, leaf.ndim + 1))
    return jnp.sum(leaf[:, None] * leaf[None, :], axis=axes)


def _gramian_by_blocks(leaf: TermLeaf) -> Gramian:
    # One long contraction loses digits; gramians of blocks, then their sum, do not.
    # The blocks of a matrix are its rows, which need no copy and keep its sharding.
    num_terms = leaf.shape[0]
    if leaf.ndim == 2 and leaf.shape[1] <= _MAX_COPIED:
        block = max(math.isqrt(leaf.shape[1]), 1)
        padded = jnp.pad(leaf, ((0, 0), (0, -leaf.shape[1] % block)))
        leaf = padded.reshape(num_terms, -1, block)
    if leaf.ndim > 2 and math.prod(leaf.shape[2:]) * 4 >= num_terms:
        axes = tuple(range(2, leaf.ndim))
        # In one piece XLA:CPU fuses the products of all leaves and holds them all.
        columns = [leaf[i : i + 32] for i in range(0, num_terms, 32)]
        blocks = [
            jax.lax.dot_general(
                leaf, part, ((axes, axes), ((1,), (1,))), precision="highest"
            )
            for part in columns
        ]
        return jnp.concatenate([jnp.sum(block, axis=0) for block in blocks], axis=1)
    axes = tuple(range(1, leaf.ndim))
    return jax.lax.dot_general(
        leaf, leaf, ((axes, axes), ((), ())), precision="highest"
    )


def only_present(present: Bool[Array, " K"] | None, leaf: TermLeaf) -> TermLeaf:
    """Zeros in place of absent terms, whatever they hold; all are there for None."""
    if present is None:
        return leaf
    there = present.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.where(there, leaf, jnp.zeros([], leaf.dtype))


def mix(weights: Weights | Mixing, leaf: TermLeaf) -> TermLeaf:
    """Weights [K] scale the terms; a matrix [K, K] mixes them."""
    if weights.ndim == 1:
        return scale(weights, leaf)
    wide = leaf.astype(accumulator_dtype(leaf, weights))
    mixed = jnp.tensordot(weights.astype(wide.dtype), wide, 1, precision="highest")
    return mixed.astype(leaf.dtype)


def scale(factors: Float[Array, " K"], leaf: TermLeaf) -> TermLeaf:
    """Multiplies each term by its factor, in the leaf's dtype."""
    wide = factors.astype(accumulator_dtype(leaf, factors))
    scaled = wide.reshape(-1, *(1,) * (leaf.ndim - 1)) * leaf
    return scaled.astype(leaf.dtype)


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
    # writes out what it has to slice: slices come first, f after. Accelerators are the
    # other way round.
    if leaves[0].shape[0] == 1:
        return f(*(leaf[0] for leaf in leaves))
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
    # Halving keeps the program, and so its compile time, short for many terms.
    half = num_terms // 2
    low, high = ([leaf[s] for leaf in leaves] for s in (slice(half), slice(half, None)))
    if num_terms % 2:
        first = f(*(leaf[0] for leaf in leaves))
        rest = _combine_slices(combine, f, *(leaf[1:] for leaf in leaves))
        return combine(first, rest)
    folded = combine(f(*low), f(*high))
    return _combine_slices(combine, lambda x: x, folded)


def weighted_sum(weights: Weights | Mixing, leaf: TermLeaf) -> Leaf:
    """The sum over the terms after :func:`mix`, without the mixed terms."""
    total = weights if weights.ndim == 1 else jnp.sum(weights, axis=0)
    wide = leaf.astype(accumulator_dtype(leaf, total))
    summed = jnp.tensordot(total.astype(wide.dtype), wide, 1, precision="highest")
    return summed.astype(leaf.dtype)
