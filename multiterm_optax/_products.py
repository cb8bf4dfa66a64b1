"""Dot products of the terms' gradients.

They are accumulated in at least float32 and without long sums, which would lose digits.
The gradients are copied only where it cannot be avoided, and sharded leaves stay on
their devices.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from multiterm_optax import _shardings, _terms
from multiterm_optax._terms import accumulator_dtype
from multiterm_optax._typing import Gramian, Norms, TermLeaf

# Up to this many terms a gramian is computed pair by pair, for more by matrix products.
_MAX_PAIRED = 10

# The same for gradients that are not stacked, where each pair is its own operation.
_MAX_PAIRED_ROWS = 8

# A loop does not pay for leaves with fewer elements for each term.
_MIN_PIECED = 1 << 16

# The numbers of terms for which slices are fastest: fewer are reduced pair by pair as
# fast as they can be read, and for more terms matrix products win.
_SLICED = range(5, 17)

# A slice of this many elements of each term stays in the cache. A block of this many
# products is summed before its sum is added to others, since one long sum loses digits.
_SLICE, _BLOCK = 1 << 15, 1 << 7

# Vectors of up to this many elements are copied to cut them into blocks.
_MAX_COPIED = 1 << 16


def gramian(*leaves: Shaped[Array, "K ..."], num_terms: int) -> Gramian:
    """Dot products of the terms' gradients, summed over leaves."""
    dtype = accumulator_dtype(*leaves)
    total = jnp.zeros((num_terms, num_terms), dtype)
    for leaf in leaves:
        if num_terms > _MAX_PAIRED:
            # XLA:CPU copies the factors of a matrix product. Without the barrier it
            # copies all leaves first, and then holds every gradient twice.
            leaf, total = jax.lax.optimization_barrier((leaf, total))
        total = total + _gramian(_shardings.on_one_device(leaf), dtype)
    return total


def squared_norms(*leaves: Shaped[Array, "K ..."], num_terms: int) -> Norms:
    """The gramian's diagonal alone, without the products of two terms."""
    start = jnp.zeros(num_terms, accumulator_dtype(*leaves))
    return sum(map(_terms.squared_norms, leaves), start=start)


def gramian_of_rows(*leaves: tuple[Array, ...], num_terms: int) -> Gramian:
    """As :func:`gramian`, for leaves that are tuples of K arrays, not yet stacked."""
    dtype = accumulator_dtype(*(rows[0] for rows in leaves))
    total = jnp.zeros((num_terms, num_terms), dtype)
    for rows in leaves:
        total = total + _gramian_of_rows(rows, dtype)
    return total


def _gramian_of_rows(rows: tuple[Array, ...], dtype: jnp.dtype) -> Gramian:
    def by_slices(*rows: Array) -> Gramian:
        flat = [row.reshape(-1) for row in rows]

        def cut(start: Array | int, size: int) -> Array:
            parts = [jax.lax.dynamic_slice_in_dim(row, start, size) for row in flat]
            return jnp.stack(parts)

        return _gramian_of_slices(cut, len(rows), flat[0].size, dtype)

    def by_pairs(*rows: Array) -> Gramian:
        wide = [row.astype(dtype) for row in rows]
        each = range(len(rows))
        upper = {(i, j): jnp.sum(wide[i] * wide[j]) for i in each for j in each[i:]}
        every = [upper[min(i, j), max(i, j)] for i in each for j in each]
        return jnp.stack(every).reshape(len(rows), len(rows))

    def stacked(*rows: Array) -> Gramian:
        return _gramian(jnp.stack(rows), dtype)

    default = by_pairs if len(rows) <= _MAX_PAIRED_ROWS else stacked
    if not _worth_slicing(len(rows), rows[0].size):
        return default(*rows)
    return jax.lax.platform_dependent(*rows, cpu=by_slices, default=default)


def _worth_slicing(num_terms: int, size: int) -> bool:
    # A slice of a sharded array may be on another device; with one device it is not.
    return num_terms in _SLICED and size >= _MIN_PIECED and jax.device_count() == 1


def _gramian(leaf: TermLeaf, dtype: jnp.dtype) -> Gramian:
    num_terms, size = leaf.shape[0], math.prod(leaf.shape[1:])

    def by_slices(leaf: TermLeaf) -> Gramian:
        flat = leaf.reshape(num_terms, -1)

        def cut(start: Array | int, size: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(flat, start, size, axis=1)

        return _gramian_of_slices(cut, num_terms, size, dtype)

    def by_pairs(leaf: TermLeaf) -> Gramian:
        # Reducing the products of all pairs needs no copy of the gradients and stays
        # accurate on long leaves.
        wide = leaf.astype(dtype)
        axes = tuple(range(2, leaf.ndim + 1))
        return jnp.sum(wide[:, None] * wide[None, :], axis=axes)

    def by_blocks(leaf: TermLeaf) -> Gramian:
        return _gramian_by_blocks(leaf.astype(dtype))

    def by_pieces(leaf: TermLeaf) -> Gramian:
        return _gramian_by_pieces(leaf.astype(dtype))

    default = by_pairs if num_terms <= _MAX_PAIRED else by_blocks
    if _worth_slicing(num_terms, size):
        return jax.lax.platform_dependent(leaf, cpu=by_slices, default=default)
    if num_terms <= _MAX_PAIRED or any(_shardings.spec(leaf)) or size < _MIN_PIECED:
        return default(leaf)
    return jax.lax.platform_dependent(leaf, cpu=by_pieces, default=default)


def _gramian_of_slices(
    cut: Callable[[Array | int, int], Array],
    num_terms: int,
    size: int,
    dtype: jnp.dtype,
) -> Gramian:
    """Sums products of slices ``cut(start, size)``, [K, n], that stay in the cache.

    On the whole leaf XLA:CPU would copy the factors of a matrix product into its own
    layout, and would reduce pairs of many terms far slower than it reads them.
    """

    def product(piece: Array) -> Gramian:
        wide = piece.astype(dtype).reshape(num_terms, -1, _BLOCK)
        blocks = jax.lax.dot_general(
            wide, wide, (((2,), (2,)), ((1,), (1,))), precision="highest"
        )
        return jnp.sum(blocks, axis=0)

    def add(i: Array, carry: tuple[Gramian, Gramian]) -> tuple[Gramian, Gramian]:
        # Kahan's summation, since a long leaf has many slices.
        total, lost = carry
        part = product(cut(i * _SLICE, _SLICE)) - lost
        grown = total + part
        return grown, (grown - total) - part

    zeros = jnp.zeros((num_terms, num_terms), dtype)
    total, _ = jax.lax.fori_loop(0, size // _SLICE, add, (zeros, zeros))
    rest = size % _SLICE
    if rest:
        last = cut(size - rest, rest)
        total = total + product(jnp.pad(last, ((0, 0), (0, -rest % _BLOCK))))
    return total


def _gramian_by_pieces(leaf: TermLeaf) -> Gramian:
    # XLA:CPU copies both factors of a matrix product into its own layout. Those of a
    # piece are small and stay in the cache. A piece takes every n-th row, so that each
    # device has an equal part of it and need not send its rows.
    num_terms, *sizes = (leaf.shape[0], *(size for size in leaf.shape[1:] if size > 1))
    if len(sizes) == 1:
        row = _divisor(sizes[0], 256, 4096) or 1
        sizes = [sizes[0] // row, row]
    found = [_divisor(size, 16, 64) for size in sizes[:-1]]
    pieces = next(filter(None, found), None)
    if pieces is None:
        return _gramian_by_blocks(leaf)
    axis = found.index(pieces)
    sizes[axis : axis + 1] = [sizes[axis] // pieces, pieces]
    split = leaf.reshape(num_terms, *sizes)

    def add(i: Array, total: Gramian) -> Gramian:
        piece = jax.lax.dynamic_index_in_dim(split, i, axis + 2, keepdims=False)
        return total + _gramian_by_blocks(piece)

    zeros = jnp.zeros((num_terms, num_terms), leaf.dtype)
    return jax.lax.fori_loop(0, pieces, add, zeros)


def _divisor(size: int, low: int, high: int) -> int | None:
    """A divisor near 32 whose quotient keeps the factors of 2 that 8 devices need."""
    found = [
        divisor
        for divisor in range(low, high + 1)
        if size % divisor == 0 and math.gcd(size // divisor, 8) == math.gcd(size, 8)
    ]
    return min(found, key=lambda divisor: abs(divisor - 32), default=None)


def _gramian_by_blocks(leaf: TermLeaf) -> Gramian:
    # One long contraction loses digits; summing the gramians of blocks does not. The
    # blocks of a matrix are its rows, which need no copy and keep its sharding.
    num_terms = leaf.shape[0]
    spread = any(_shardings.spec(leaf))
    if leaf.ndim == 2 and leaf.shape[1] <= _MAX_COPIED and not spread:
        block = max(math.isqrt(leaf.shape[1]), 1)
        padded = jnp.pad(leaf, ((0, 0), (0, -leaf.shape[1] % block)))
        leaf = padded.reshape(num_terms, -1, block)
    if leaf.ndim > 2 and math.prod(leaf.shape[2:]) * 4 >= num_terms:
        axes = tuple(range(2, leaf.ndim))
        # If it were one product, XLA:CPU would fuse those of all leaves and hold them
        # all.
        columns = [leaf[i : i + 32] for i in range(0, num_terms, 32)]
        blocks = [
            jax.lax.dot_general(
                leaf,
                part,
                ((axes, axes), ((1,), (1,))),
                precision="highest",
                out_sharding=_shardings.sharding(leaf, _shardings.spec(leaf)[1])
                if spread
                else None,
            )
            for part in columns
        ]
        return jnp.concatenate([jnp.sum(block, axis=0) for block in blocks], axis=1)
    axes = tuple(range(1, leaf.ndim))
    return jax.lax.dot_general(
        leaf,
        leaf,
        ((axes, axes), ((), ())),
        precision="highest",
        out_sharding=_shardings.sharding(leaf) if spread else None,
    )
