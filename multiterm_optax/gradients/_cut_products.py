# Longer than most: terms share rows or own them.
"""Dot products of gradients from what a cut holds, often without the gradients.

With X the constant operand as a matrix [R, n] and D_k the cotangents [R, m] of term k,
the gradient of term k is X^T D_k [n, m]. For terms that share X

    <X^T D_k, X^T D_l> = <X X^T D_k, D_l>,

and for terms with rows of their own, X_k, the sum of (X_k X_l^T) * (D_k D_l^T). Whether
this or the gradients cost fewer multiplications is known from the sizes.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from multiterm_optax import _products, _terms
from multiterm_optax._typing import Gramian, Norms
from multiterm_optax.gradients._cuts import Cut

# A cut that saves fewer multiplications is not worth its operations.
_MIN_SAVED = 1 << 16


# Terms that share the rows.


def worth(cut: Cut, num_terms: int, *, norms: bool) -> bool:
    """Whether the products below cost less than those of K gradients."""
    b, rows, width, columns = cut.kind.sizes
    pairs = num_terms if norms else num_terms**2
    here, gradients = pairs * rows * columns, pairs * width * columns
    if not cut.kind.table:
        here += rows**2 * (width + num_terms * columns)
        gradients += num_terms * rows * width * columns
    return b * (gradients - here) >= max(_MIN_SAVED, b * gradients // 8)


def products_of(cut: Cut) -> Callable[[Array], tuple[Array, Array]]:
    """From cotangents [K, ...] to D and X X^T D, both [K, b, R, m], in a wide dtype."""
    if cut.kind.table:
        entries = cut.kind.parts(cut.constant)

        def of_table(cotangents: Array) -> tuple[Array, Array]:
            own = _wide(jax.vmap(cut.kind.rows_of)(cotangents))
            gathered = _gathered(entries, cut.kind.sizes[2], own)
            return gathered, gathered

        return of_table

    square = _squares(cut.kind.parts(cut.constant))

    def products(cotangents: Array) -> tuple[Array, Array]:
        own = _wide(jax.vmap(cut.kind.rows_of)(cotangents))
        dtype = jnp.result_type(square, own)
        along = jnp.einsum(
            "brs,kbsm->kbrm", square.astype(dtype), own, precision="highest"
        )
        return own.astype(dtype), along

    return products


def gramian(cut: Cut, cotangents: Array) -> Gramian:
    """The part [K, K] of one cut, from the cotangents [K, ...] of its output."""
    own, along = products_of(cut)(cotangents)
    if cut.kind.table:
        return _products.gramian(own, num_terms=len(own))
    # One long contraction loses digits; several short ones with large results are slow.
    if own.shape[3] >= len(own):
        each = jnp.einsum("kbrm,lbrm->brkl", along, own, precision="highest")
        found = jnp.sum(each, axis=(0, 1))
    else:
        found = jnp.einsum("kbrm,lbrm->kl", along, own, precision="highest")
    return (found + found.T) / 2


def _squares(parts: Iterable[Array], table: bool = False) -> Array:
    """The sum of X X^T over the parts of X; in a table, which entries are the same."""
    if table:
        (entries,) = parts
        same = (entries == entries.swapaxes(1, 2)) & (entries >= 0)
        return same.astype(jnp.float32)
    return functools.reduce(jnp.add, map(_square, parts))


def _square(part: Array) -> Array:
    wide = _wide(part)
    return jnp.einsum("brn,bsn->brs", wide, wide, precision="highest")


def _gathered(entries: Array, size: int, cotangents: Array) -> Array:
    """Adds up the rows [K, 1, R, m] that read the same entry, at the first of them."""
    rows = jnp.arange(len(entries))
    place = jnp.where(entries < 0, size, entries)
    first = jnp.full(size, len(entries)).at[place].min(rows, mode="drop")
    target = jnp.where(entries < 0, len(entries), first[entries])
    return jnp.zeros_like(cotangents).at[:, :, target].add(cotangents, mode="drop")


# Terms that own their rows.


def worth_by_row(cut: Cut) -> bool:
    """Whether a cut beats gradients that the backward pass makes by itself."""
    _, rows, width, _ = cut.kind.sizes
    return rows**2 < width if cut.kind.table else True


def gramian_by_row(cut: Cut, constants: Any, cotangents: Array) -> Gramian:
    """The part [B, B] of one cut, with constants and cotangents [B, ...]."""
    num_rows = len(cotangents)
    parts, own = _by_row(cut, constants, cotangents)
    if cut.kind.table or _pairs_are_cheaper(cut, num_rows):
        square = _squares(map(_by_product, parts), cut.kind.table)
        return _sum_of_pairs(square, own)
    total = jnp.zeros((num_rows, num_rows), own.dtype)
    for part in parts:
        total = total + _products.gramian(_gradients(part, own), num_terms=num_rows)
    return total


def squared_norms_by_row(cut: Cut, constants: Any, cotangents: Array) -> Norms:
    """The diagonal [B] of :func:`gramian_by_row`."""
    parts, own = _by_row(cut, constants, cotangents)
    if cut.kind.table or _pairs_are_cheaper(cut, 1):
        square = jax.vmap(lambda one: _squares(one, cut.kind.table))(parts)
        return jnp.sum(square * jax.vmap(_square)(own), axis=(1, 2, 3))
    norms = [_terms.squared_norms(_gradients(part, own)) for part in parts]
    return functools.reduce(jnp.add, norms)


def _by_row(cut: Cut, constants: Any, cotangents: Array) -> tuple[list[Array], Array]:
    """X in parts [B, b, R, n_i], and the cotangents [B, b, R, m]."""
    parts = jax.vmap(cut.kind.parts)(constants)
    if cut.kind.table:
        parts = [parts[:, None, :, None]]
    return parts, _wide(jax.vmap(cut.kind.rows_of)(cotangents))


def _pairs_are_cheaper(cut: Cut, num_rows: int) -> bool:
    """Whether products of pairs of positions cost less than the gradients do."""
    _, rows, width, columns = cut.kind.sizes
    pairs = num_rows * rows**2 * (width + columns)
    return pairs < (rows + num_rows) * width * columns


def _gradients(part: Array, cotangents: Array) -> Array:
    return jnp.einsum("kbrn,kbrm->kbnm", _wide(part), cotangents, precision="highest")


def _sum_of_pairs(square: Array, cotangents: Array) -> Gramian:
    num_rows, _, rows, _ = cotangents.shape
    pairs = jnp.sum(square * _square(_by_product(cotangents)), axis=0)
    return jnp.sum(pairs.reshape(num_rows, rows, num_rows, rows), axis=(1, 3))


def _by_product(rows: Array) -> Array:
    """From [B, b, R, n] to [b, B R, n]."""
    moved = jnp.swapaxes(rows, 0, 1)
    return moved.reshape(len(moved), -1, rows.shape[-1])


def _wide(values: Array) -> Array:
    return values.astype(_terms.accumulator_dtype(values))
