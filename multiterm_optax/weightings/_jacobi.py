# Longer than most: the usual eigensolvers would lose the short gradients.
"""Principal components by Jacobi's rotations, exact for short gradients as well.

The usual algorithms find eigenvalues to a rounding of the largest. If gradients differ
in length by orders of magnitude, this leaves nothing of the small ones. One-sided
rotations of the gradients themselves keep every digit that the cosines have (Demmel and
Veselic, "Jacobi's method is more accurate than QR", 1992).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multiterm_optax._typing import Gramian, Norms

_MAX_SWEEPS = 30


class Components(NamedTuple):
    """The principal components of the gradients, N = K of them, or K + 1 for an odd K.

    Attributes:
      parts: Component i is ``roots[i]`` times the sum of ``parts[i, j]`` times gradient
        j divided by its length [N, K].
      vectors: The eigenvectors of the gramian in rows [N, K].
      roots: The components' lengths, the roots of the eigenvalues [N].
      kept: Which of them are not zero to within the cosines' rounding [N]; the other
        fields are zero for the rest.
    """

    parts: Float[Array, "N K"]
    vectors: Float[Array, "N K"]
    roots: Float[Array, " N"]
    kept: Bool[Array, " N"]


class _Rows(NamedTuple):
    """Combinations of the gradients, each divided by a unit [N] of about its length.

    They stand as coordinates and coefficients, side by side [N, 2 K].
    """

    rows: Array
    units: Array
    vectors: Array


def decompose(cosines: Gramian, lengths: Norms) -> Components:
    """The components for these cosines and lengths; a length of 0 is no gradient."""
    terms = len(cosines)
    resolution = 8 * terms * float(jnp.finfo(cosines.dtype).eps)
    values, columns = jnp.linalg.eigh(cosines)
    rows = columns * jnp.sqrt(jnp.where(values > resolution, values, 0))[None, :]
    silent = lengths == 0
    rows = jnp.where(silent[:, None], 0, rows)
    # Made from the problem: inside shard_map it then differs by device, too.
    identity = jnp.zeros_like(rows) + jnp.eye(terms, dtype=rows.dtype)
    odd = terms % 2
    start = _Rows(
        jnp.pad(jnp.concatenate([rows, identity], axis=1), ((0, odd), (0, 0))),
        jnp.pad(jnp.where(silent, 1, lengths), (0, odd), constant_values=1),
        jnp.pad(identity, ((0, odd), (0, 0))),
    )
    # A row that is left out is a combination of the others. It is turned away from them
    # until nothing is left of it, since the eigenvectors must be exact.
    end = _orthogonal(start, resolution**2)
    lengths = jnp.sqrt(_squares(end))
    kept = lengths > (resolution / 2) ** 0.5
    lengths = jnp.where(kept, lengths, 1)
    return Components(
        jnp.where(kept[:, None], end.rows[:, terms:] / lengths[:, None], 0),
        jnp.where(kept[:, None], end.vectors, 0),
        jnp.where(kept, end.units * lengths, 0),
        kept,
    )


def _squares(state: _Rows) -> Array:
    return _products(state, state)


def _products(one: _Rows, other: _Rows) -> Array:
    terms = one.vectors.shape[1]
    return jnp.sum(one.rows[:, :terms] * other.rows[:, :terms], axis=1)


def _orthogonal(start: _Rows, resolution: float) -> _Rows:
    """Rotates pairs of rows until all are orthogonal."""
    number = len(start.rows)
    half, rounds = number // 2, number - 1
    # All pairs in number - 1 rounds, each of pairs that have no row in common: one row
    # stays in its place, and the others move on.
    order = jnp.array([0, rounds, *range(1, rounds)])
    enough = 0.1 * float(jnp.finfo(start.rows.dtype).eps) ** 0.5

    def rotate_and_move(_: Array, carry: tuple[_Rows, Array]) -> tuple[_Rows, Array]:
        state, largest = carry
        upper = jax.tree.map(lambda x: x[:half], state)
        lower = jax.tree.map(lambda x: x[half:][::-1], state)
        upper, lower, cosines = _rotate(upper, lower, resolution)
        state = jax.tree.map(
            lambda one, other: jnp.concatenate([one, other[::-1]])[order], upper, lower
        )
        return state, jnp.maximum(largest, jnp.max(cosines))

    def sweep(carry: tuple[_Rows, Array, Array]) -> tuple[_Rows, Array, Array]:
        state, _, sweeps = carry
        first = state, jnp.zeros_like(state.units[0])
        state, largest = jax.lax.fori_loop(0, rounds, rotate_and_move, first)
        return state, largest, sweeps + 1

    # A sweep squares the remaining cosines.
    first = jnp.ones_like(start.units[0]), jnp.zeros_like(start.units[0], jnp.int32)
    return jax.lax.while_loop(
        lambda carry: (carry[1] > enough) & (carry[2] < _MAX_SWEEPS),
        sweep,
        (start, *first),
    )[0]


def _rotate(
    upper: _Rows, lower: _Rows, resolution: float
) -> tuple[_Rows, _Rows, Array]:
    """Makes each pair orthogonal; says how far from it they were, as cosines."""
    a, b, product = _squares(upper), _squares(lower), _products(upper, lower)
    both = (a > resolution) & (b > resolution) & (product != 0)
    size = jnp.sqrt(jnp.where(both, a * b, 1))
    cosines = jnp.where(both, jnp.abs(product) / size, 0)
    # The tangent of the angle is a ratio of units, at most 1, times this, so that
    # nothing is lost however far apart they are.
    longer = upper.units < lower.units
    ratio = jnp.where(longer, upper.units / lower.units, lower.units / upper.units)
    squared = ratio**2
    apart = jnp.where(longer, b - squared * a, squared * b - a)
    apart = apart / (2 * jnp.where(both, product, 1))
    sign = jnp.where(apart < 0, -1, 1)
    factor = sign / (jnp.abs(apart) + jnp.sqrt(squared + apart**2))
    factor = jnp.where(both, factor, 0)
    tangent = factor * ratio
    cosine = jax.lax.rsqrt(1 + tangent**2)[:, None]

    def turned(one: Array, other: Array, by: Array) -> Array:
        return cosine * (one + by[:, None] * other)

    up = -factor * jnp.where(longer, 1, squared)
    down = factor * jnp.where(longer, squared, 1)
    return (
        _Rows(
            turned(upper.rows, lower.rows, up),
            upper.units,
            turned(upper.vectors, lower.vectors, -tangent),
        ),
        _Rows(
            turned(lower.rows, upper.rows, down),
            lower.units,
            turned(lower.vectors, upper.vectors, tangent),
        ),
        cosines,
    )
