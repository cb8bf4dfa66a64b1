"""The middle of the terms, element by element."""

from collections.abc import Iterator
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _shardings, _terms
from multiterm_optax._typing import Leaf, TermLeaf

# For more terms the network would take long to compile.
_MAX_NETWORK = 32


def mean_of_middle(
    present: Bool[Array, " K"] | None, leaf: TermLeaf, trim: int
) -> Leaf:
    """The mean without the ``trim`` smallest and the ``trim`` largest elements.

    At least the median, one or two elements, is always left. NaN counts as infinity.
    """
    num_terms = leaf.shape[0]
    rows = jnp.where(jnp.isnan(leaf), jnp.array(jnp.inf, leaf.dtype), leaf)
    if present is None:
        cut = min(trim, (num_terms - 1) // 2)
        kept = _sorted(rows)[cut : num_terms - cut]
        return _mean(kept, num_terms - 2 * cut, leaf)
    mask = present.reshape(-1, *(1,) * (leaf.ndim - 1)) & jnp.ones_like(rows, bool)
    # Absent terms come last, after all the present ones.
    ranked = _sorted(jnp.where(mask, rows, jnp.array(jnp.inf, leaf.dtype)))
    number = jnp.sum(present)
    cut = jnp.clip((number - 1) // 2, 0, trim)
    kept = [
        jnp.where((i >= cut) & (i < number - cut), row, jnp.zeros_like(row))
        for i, row in enumerate(ranked)
    ]
    return _mean(kept, jnp.maximum(number - 2 * cut, 1), leaf)


def _mean(rows: list[Leaf], number: int | jax.Array, leaf: TermLeaf) -> Leaf:
    wide = [row.astype(_terms.accumulator_dtype(leaf)) for row in rows]
    mean = reduce(jnp.add, wide) / jnp.asarray(number, wide[0].dtype)
    if _shardings.over_devices(leaf):
        mean = jax.sharding.reshard(
            mean, _shardings.sharding(leaf, *_shardings.spec(leaf)[1:])
        )
    return mean.astype(leaf.dtype)


def _sorted(rows: TermLeaf) -> list[Leaf]:
    """The terms' elements in ascending order."""
    num_terms = rows.shape[0]
    rows = _shardings.on_one_device(rows)
    if num_terms > _MAX_NETWORK:
        return list(jnp.sort(rows, axis=0))
    # XLA:CPU sorts a hundred times slower than it compares whole slices.
    ranked = [rows[i] for i in range(num_terms)]
    for low, high in _comparators(num_terms):
        pair = ranked[low], ranked[high]
        ranked[low], ranked[high] = jnp.minimum(*pair), jnp.maximum(*pair)
    return ranked


def _comparators(number: int) -> Iterator[tuple[int, int]]:
    """Batcher's merge exchange: Knuth, "The Art of Computer Programming", 5.2.2 M."""
    first = 1 << max((number - 1).bit_length() - 1, 0)
    p = first
    while p and number > 1:
        q, r, d = first, 0, p
        while True:
            yield from ((i, i + d) for i in range(number - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
