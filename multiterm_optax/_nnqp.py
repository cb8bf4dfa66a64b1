"""The one K x K solver: non-negative quadratic programs on a gramian.

.. math:: \\min_{z \\ge 0} \\tfrac12 z^T H z - q^T z

with H symmetric positive semidefinite and of unit scale. The min-norm point of a
simplex (MGDA) and projections onto the dual cone (UPGrad, DualProj) are such
programs, once they are scaled so that no gradient is longer than another; then
float32 is enough whatever the losses' scales are.

Mehrotra's predictor-corrector interior point: 7 to 20 iterations of one K x K
factorisation each, the same arithmetic for every problem of a vmapped batch.
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


def solve(h: Gramian, q: Weights) -> Solution:
    """Minimises ``z @ h @ z / 2 - q @ z`` over ``z >= 0``."""
    h, q = jax.lax.stop_gradient((h, q))
    count, dtype = h.shape[0], h.dtype
    tiny = jnp.finfo(dtype).eps
    # Residuals cannot be known better than the rounding of their sums; products of
    # z and slack can, and are driven far below so that pairs that are both zero at
    # the optimum are resolved.
    target = 4 * tiny
    ridge = 8 * tiny * count * jnp.eye(count, dtype=dtype)

    def residuals(z: Array, slack: Array) -> tuple[Array, Array]:
        dual = _dot(h, z) - q - slack
        return dual, z * slack

    def error(z: Array, slack: Array) -> Array:
        dual, products = residuals(z, slack)
        size = jnp.maximum(jnp.max(jnp.abs(q)), tiny)
        gap = jnp.sqrt(jnp.max(products)) / jnp.maximum(jnp.max(z), tiny)
        return jnp.maximum(jnp.max(jnp.abs(dual)) / size, gap)

    def direction(factor: Array, z: Array, slack: Array, dual: Array, products: Array):
        # (H + S/Z) dz = -dual - products / z, refined once against the matrix
        # without the ridge.
        rhs = -dual - products / z
        dz = _solve_factored(factor, rhs)
        dz = dz + _solve_factored(factor, rhs - _dot(h, dz) - slack / z * dz)
        return dz, -(products + slack * dz) / z

    def step_length(x: Array, dx: Array) -> Array:
        return jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf))

    def body(it: _Iterate) -> _Iterate:
        z, slack = it.z, it.slack
        dual, products = residuals(z, slack)
        mu = jnp.mean(products)
        factor = jnp.linalg.cholesky(h + jnp.diag(slack / z) + ridge)
        dz, ds = direction(factor, z, slack, dual, products)
        a = jnp.minimum(1, jnp.minimum(step_length(z, dz), step_length(slack, ds)))
        mu_affine = jnp.mean((z + a * dz) * (slack + a * ds))
        sigma = (mu_affine / mu) ** 3
        dz, ds = direction(
            factor, z, slack, dual, products + dz * ds - sigma * mu
        )
        a = jnp.minimum(step_length(z, dz), step_length(slack, ds))
        a = jnp.minimum(1, 0.995 * a)
        floor = jnp.finfo(dtype).tiny ** 0.5
        z = jnp.maximum(z + a * dz, floor)
        slack = jnp.maximum(slack + a * ds, floor)
        now = error(z, slack)
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
            (it.best_error > target)
            & (it.stalled < 4)
            & (it.iterations < MAX_ITERATIONS)
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
    return Solution(end.best, end.best_error <= jnp.sqrt(tiny), end.iterations)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _solve_factored(factor: Array, rhs: Array) -> Array:
    return jax.scipy.linalg.cho_solve((factor, True), rhs)
