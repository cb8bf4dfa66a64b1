"""Algebra on the term axis: norms, gramian, scaling, sums and maxima.

Every function takes leaves ``[K, *p]``, accumulates in at least float32, and
never reshapes a leaf, so that sharded leaves stay where they are.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiterm_optax._typing import Leaf, Norms, TermLeaf


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


def scale(factors: Float[Array, " K"], leaf: TermLeaf) -> TermLeaf:
    """Multiplies each term by its factor, in the leaf's dtype."""
    wide = factors.astype(accumulator_dtype(leaf, factors))
    scaled = wide.reshape(-1, *(1,) * (leaf.ndim - 1)) * leaf
    return scaled.astype(leaf.dtype)


def sum_terms(leaf: TermLeaf) -> Leaf:
    """Sum over the term axis, accumulated wide, in the leaf's dtype."""
    total = _over_terms(jnp.add, jnp.sum, leaf.astype(accumulator_dtype(leaf)))
    return total.astype(leaf.dtype)


def max_terms(leaf: TermLeaf) -> Leaf:
    """Maximum over the term axis."""
    return _over_terms(jnp.maximum, jnp.max, leaf)


def _over_terms(
    combine: Callable[[Array, Array], Array],
    over_axis: Callable[..., Array],
    leaf: TermLeaf,
) -> Leaf:
    # XLA:CPU reduces a leading axis 10 to 15 times slower than it adds slices;
    # accelerators are the other way round.
    if leaf.shape[0] == 1:
        return leaf[0]
    return jax.lax.platform_dependent(
        leaf,
        cpu=lambda x: _combine_slices(combine, x),
        default=lambda x: over_axis(x, axis=0),
    )


def _combine_slices(combine: Callable[[Array, Array], Array], leaf: TermLeaf) -> Leaf:
    # Halving keeps the program, and so its compile time, short for many terms.
    while leaf.shape[0] > 16:
        half = leaf.shape[0] // 2
        folded = combine(leaf[:half], leaf[half : 2 * half])
        leaf = jnp.concatenate([folded, leaf[2 * half :]]) if leaf.shape[0] % 2 else folded
    return reduce(combine, [leaf[i] for i in range(leaf.shape[0])])
