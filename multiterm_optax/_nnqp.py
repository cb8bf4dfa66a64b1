r"""The one K x K solver: non-negative quadratic programs on a gramian.

.. math::

  \min_{z \ge 0} \tfrac12 z^T C z + \tfrac12 (b \cdot z)^2 - q \cdot z

with C a gramian of unit scale and b, q vectors. The min-norm point of a simplex
(MGDA) is such a program with b = q, projections onto the dual cone (UPGrad,
DualProj) with b = 0, once no gradient is much longer than another; float32 is
then enough whatever the losses' scales are.

Mehrotra's predictor-corrector interior point: 7 to 20 iterations of one K x K
factorisation each, the same arithmetic for every problem of a vmapped batch. The
residual, on which the accuracy of the answer rests, is evaluated in twice the
working precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiterm_optax._typing import Gramian, Weights

MAX_ITERATIONS = 40


class Solution(NamedTuple):
    """A point, and whether it meets the optimality conditions."""

    z: Float[Array, " K"]
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


class _Iterate(NamedTuple):
    z: Float[Array, " K"]
    slack: Float[Array, " K"]
    best: Float[Array, " K"]
    best_error: Float[Array, ""]
    stalled: Int[Array, ""]
    iterations: Int[Array, ""]


# Compiled once for each K also when called outside jit.
@jax.jit
def solve(c: Gramian, b: Weights, q: Weights) -> Solution:
    """Minimises ``z @ c @ z / 2 + (b @ z)**2 / 2 - q @ z`` over ``z >= 0``."""
    c, b, q = jax.lax.stop_gradient((c, b, q))
    count, dtype = c.shape[0], c.dtype
    eps = jnp.finfo(dtype).eps
    smallest = jnp.finfo(dtype).tiny ** 0.5
    hessian = c + b[:, None] * b[None, :]
    ridge = 8 * eps * count * jnp.eye(count, dtype=dtype)

    def dual_residual(z: Array, slack: Array) -> Array:
        rank_one = b * _accurate_dot(b[None, :], z, jnp.zeros_like(z[:1]))
        return _accurate_dot(c, z, rank_one - q, -slack)

    def error(z: Array, slack: Array, dual: Array) -> Array:
        # The residual cannot be known better than its rounding; products of z and
        # slack can, and are driven below, so that pairs that are both zero at the
        # optimum are resolved.
        size = jnp.maximum(jnp.max(jnp.abs(q)), smallest)
        gap = jnp.sqrt(jnp.max(z * slack)) / jnp.maximum(jnp.max(z), smallest)
        return jnp.maximum(jnp.max(jnp.abs(dual)) / size, gap)

    def direction(
        factor: Array, z: Array, slack: Array, dual: Array, products: Array
    ) -> tuple[Array, Array]:
        # (H + S/Z) dz = -dual - products / z, refined once against the matrix
        # without the ridge.
        rhs = -dual - products / z
        dz = _solve_factored(factor, rhs)
        dz = dz + _solve_factored(factor, rhs - _dot(hessian, dz) - slack / z * dz)
        return dz, -(products + slack * dz) / z

    def step_length(x: Array, dx: Array) -> Array:
        return jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf))

    def body(it: _Iterate) -> _Iterate:
        z, slack = it.z, it.slack
        dual, products = dual_residual(z, slack), z * slack
        mu = jnp.mean(products)
        factor = jnp.linalg.cholesky(hessian + jnp.diag(slack / z) + ridge)
        dz, ds = direction(factor, z, slack, dual, products)
        a = jnp.minimum(1, jnp.minimum(step_length(z, dz), step_length(slack, ds)))
        mu_affine = jnp.mean((z + a * dz) * (slack + a * ds))
        sigma = (mu_affine / mu) ** 3
        dz, ds = direction(factor, z, slack, dual, products + dz * ds - sigma * mu)
        a = jnp.minimum(step_length(z, dz), step_length(slack, ds))
        a = jnp.minimum(1, 0.995 * a)
        z = jnp.maximum(z + a * dz, smallest)
        slack = jnp.maximum(slack + a * ds, smallest)
        now = error(z, slack, dual_residual(z, slack))
        better = now < it.best_error
        return _Iterate(
            z=z,
            slack=slack,
            best=jnp.where(better, z, it.best),
            best_error=jnp.where(better, now, it.best_error),
            stalled=jnp.where(now < 0.9 * it.best_error, 0, it.stalled + 1),
            iterations=it.iterations + 1,
        )

    def unfinished(it: _Iterate) -> Array:
        return (
            (it.best_error > eps) & (it.stalled < 4) & (it.iterations < MAX_ITERATIONS)
        )

    ones = jnp.ones_like(q)
    start = _Iterate(
        z=ones,
        slack=ones,
        best=ones,
        best_error=jnp.asarray(jnp.inf, dtype),
        stalled=jnp.zeros([], jnp.int32),
        iterations=jnp.zeros([], jnp.int32),
    )
    end = jax.lax.while_loop(unfinished, body, start)
    return Solution(end.best, end.best_error <= jnp.sqrt(eps), end.iterations)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _solve_factored(factor: Array, rhs: Array) -> Array:
    return jax.scipy.linalg.cho_solve((factor, True), rhs)


def _accurate_dot(rows: Array, vector: Array, *added: Array) -> Array:
    """``rows @ vector + sum(added)``, rounded about once.

    Error-free products and sums (Dekker, Knuth): what a rounding loses is kept and
    added at the end.
    """
    product = rows * vector
    lost = _product_error(rows, jnp.broadcast_to(vector, rows.shape), product)
    terms = jnp.concatenate([product, *(one[:, None] for one in added)], axis=1)
    rest = jnp.sum(lost, axis=1)
    while terms.shape[1] > 1:
        terms = jnp.pad(terms, ((0, 0), (0, terms.shape[1] % 2)))
        left, right = terms[:, 0::2], terms[:, 1::2]
        terms = left + right
        moved = terms - left
        rest = rest + jnp.sum((left - (terms - moved)) + (right - moved), axis=1)
    return terms[:, 0] + rest


def _product_error(x: Array, y: Array, product: Array) -> Array:
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    rest = x_high * y_high - product
    return ((rest + x_high * y_low) + x_low * y_high) + x_low * y_low


def _halves(x: Array) -> tuple[Array, Array]:
    bits = jnp.finfo(x.dtype).nmant // 2 + 1
    scaled = x * (2.0**bits + 1)
    high = scaled - (scaled - x)
    return high, x - high
