"""Eigenvectors of a gramian by Jacobi's rotations, exact for short gradients as well.

The usual algorithms find eigenvalues to a rounding of the largest. Where gradients
differ in length by orders of magnitude that is nothing. One-sided rotations of the
gradients themselves keep every digit that the cosines have (Demmel and Veselic,
"Jacobi's method is more accurate than QR", 1992).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multiterm_optax import _linear
from multiterm_optax._typing import Gramian, Norms, Weights

_MAX_SWEEPS = 30


class Eigen(NamedTuple):
    """Eigenvectors in rows, and the roots of their eigenvalues.

    Attributes:
      vectors: [N, K] with N = K, or K + 1 for an odd K.
      roots: [N], 0 for those that are not kept.
      kept: Which eigenvalues are not zero to within the cosines' rounding.
    """

    vectors: Float[Array, "N K"]
    roots: Float[Array, " N"]
    kept: Bool[Array, " N"]


class _Rows(NamedTuple):
    """Rows [N, K]: a combination of gradients is ``units * rows``."""

    rows: Array
    units: Array
    vectors: Array


def decompose(cosines: Gramian, lengths: Norms) -> Eigen:
    """Of the gramian of gradients with these cosines and lengths, 0 for no gradient."""
    terms = len(cosines)
    resolution = 8 * terms * float(jnp.finfo(cosines.dtype).eps)
    values, columns = jnp.linalg.eigh(cosines)
    rows = columns * jnp.sqrt(jnp.where(values > resolution, values, 0))
    silent = lengths == 0
    rows = jnp.where(silent[:, None], 0, rows)
    units = jnp.where(silent, 1, lengths)
    identity = jnp.eye(terms, dtype=rows.dtype)
    odd = terms % 2
    start = _Rows(
        jnp.pad(rows, ((0, odd), (0, 0))),
        jnp.pad(units, (0, odd), constant_values=1),
        jnp.pad(identity, ((0, odd), (0, 0))),
    )
    # A row that is left out is a combination of the others. It is turned away from them
    # until nothing is left of it, since the eigenvectors are to be exact.
    end = _orthogonal(start, resolution**2)
    squares = jnp.sum(end.rows**2, axis=1)
    kept = squares > resolution / 2
    return Eigen(end.vectors, jnp.where(kept, end.units * jnp.sqrt(squares), 0), kept)


def _orthogonal(start: _Rows, resolution: float) -> _Rows:
    """Rotates pairs of rows until all are orthogonal."""
    number = len(start.rows)
    # All pairs in number - 1 rounds, each of pairs that have no row in common: one row
    # stays in its place, and the others move on.
    order = jnp.array([0, number - 1, *range(1, number - 1)])
    enough = 0.1 * float(jnp.finfo(start.rows.dtype).eps) ** 0.5

    def rotate_and_move(_: Array, carry: tuple[_Rows, Array]) -> tuple[_Rows, Array]:
        state, largest = carry
        half = number // 2
        upper = jax.tree.map(lambda x: x[:half], state)
        lower = jax.tree.map(lambda x: x[half:][::-1], state)
        upper, lower, cosines = _rotate(upper, lower, resolution)
        state = jax.tree.map(
            lambda one, other: jnp.concatenate([one, other[::-1]])[order], upper, lower
        )
        return state, jnp.maximum(largest, jnp.max(cosines))

    def sweep(carry: tuple[_Rows, Array, Array]) -> tuple[_Rows, Array, Array]:
        state, _, sweeps = carry
        largest = jnp.zeros_like(state.units[0])
        rounds = max(number - 1, 1)
        state, largest = jax.lax.fori_loop(
            0, rounds, rotate_and_move, (state, largest), unroll=rounds < 4
        )
        return state, largest, sweeps + 1

    # A sweep squares what is left.
    first = jnp.ones_like(start.units[0]), jnp.zeros_like(start.units[0], jnp.int32)
    return jax.lax.while_loop(
        lambda carry: (carry[1] > enough) & (carry[2] < _MAX_SWEEPS),
        sweep,
        (start, *first),
    )[0]


def _rotate(
    upper: _Rows, lower: _Rows, resolution: float
) -> tuple[_Rows, _Rows, Array]:
    """Makes each pair orthogonal; and how far from it they were, as cosines."""
    a, b = (jnp.sum(one.rows**2, axis=1) for one in (upper, lower))
    product = jnp.sum(upper.rows * lower.rows, axis=1)
    both = (a > resolution) & (b > resolution) & (product != 0)
    size = jnp.sqrt(jnp.where(both, a * b, 1))
    cosines = jnp.where(both, jnp.abs(product) / size, 0)
    ratio = lower.units / upper.units
    double = 2 * jnp.where(both, product, 1)
    cotangent = (ratio * b - a / ratio) / double
    tangent = jnp.sign(cotangent) / (jnp.abs(cotangent) + jnp.hypot(1.0, cotangent))
    tangent = jnp.where(cotangent == 0, 1, tangent)
    tangent = jnp.where(both, tangent, 0)
    cosine = jax.lax.rsqrt(1 + tangent**2)

    def turned(one: Array, other: Array, by: Weights) -> Array:
        return cosine[:, None] * (one + by[:, None] * other)

    return (
        _Rows(
            turned(upper.rows, lower.rows, -tangent * ratio),
            upper.units,
            turned(upper.vectors, lower.vectors, -tangent),
        ),
        _Rows(
            turned(lower.rows, upper.rows, tangent / ratio),
            lower.units,
            turned(lower.vectors, upper.vectors, tangent),
        ),
        cosines,
    )


def combine(eigen: Eigen, factors: Float[Array, " N"], values: Weights) -> Weights:
    """``V f(S) V^T values`` for factors f(S) of the eigenvalues."""
    along = _linear.dot(eigen.vectors, values)
    return _linear.dot(factors * along, eigen.vectors)
