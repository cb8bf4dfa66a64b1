"""Small dense linear algebra, as accurate as the dtype allows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Up to this many terms the matrix is inverted by eliminations written in jnp: on CPU
# LAPACK is called for each problem of a batch, and not fused with what comes next.
_MAX_INVERTED = 16


def dot(a: Array, b: Array) -> Array:
    """The product, in the full precision of its dtype on every device."""
    return jnp.matmul(a, b, precision="highest")


def solver(matrix: Array) -> Callable[[Array], Array]:
    """Solves for one right-hand side after another; positive definite."""
    if len(matrix) > _MAX_INVERTED:
        factor = jnp.linalg.cholesky(matrix)
        return lambda rhs: jax.scipy.linalg.cho_solve((factor, True), rhs)
    root = _inverse_root(matrix)
    return lambda rhs: dot(dot(root, rhs), root)


def _inverse_root(matrix: Array) -> Array:
    """The inverse of a positive definite matrix's lower factor, by elimination."""
    index = jnp.arange(len(matrix))

    def step(k: Array, a: Array) -> Array:
        # Below its diagonal the matrix is replaced by the inverse of a factor with
        # ones on the diagonal, which ends up holding the pivots.
        below = index > k
        row = a[k]
        factors = jnp.where(below, row / row[k], 0)
        a = jnp.where(below[:, None] & (index == k)[None, :], 0, a)
        return a - factors[:, None] * jnp.where(index == k, 1, row)[None, :]

    a = jax.lax.fori_loop(0, len(matrix), step, matrix, unroll=2)
    root = jnp.tril(a, -1) + jnp.eye(len(matrix), dtype=a.dtype)
    return root * jax.lax.rsqrt(jnp.diagonal(a))[:, None]


def accurate_dot(columns: Array, vector: Array, *added: Array) -> Array:
    """``vector @ columns + sum(added)``, rounded about once.

    Error-free products and sums (Dekker, Knuth): what a rounding loses is kept and
    added at the end.
    """

    def add(carry: tuple[Array, Array], term: Array) -> tuple[Array, Array]:
        total, lost = carry
        grown = total + term
        moved = grown - total
        return grown, lost + ((total - (grown - moved)) + (term - moved))

    x, y = columns, vector[:, None]
    products = x * y
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    errors = x_high * y_high - products + x_high * y_low + x_low * y_high
    errors = errors + x_low * y_low

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, lost = add(carry, products[i])
        return total, lost + errors[i]

    # A tree of sums would be written out level by level.
    zeros = jnp.zeros_like(products[0])
    carry = jax.lax.fori_loop(0, len(vector), body, (zeros, zeros), unroll=16)
    for term in added:
        carry = add(carry, term)
    return carry[0] + carry[1]


def _halves(x: Array) -> tuple[Array, Array]:
    bits = jnp.finfo(x.dtype).nmant // 2 + 1
    scaled = x * (2.0**bits + 1)
    high = scaled - (scaled - x)
    return high, x - high
