r"""The one K x K solver: non-negative quadratic programs on a gramian.

.. math::

  \min_{z \ge 0} \tfrac12 z^T C z + \tfrac12 (b \cdot z)^2 - q \cdot z

with C a gramian of unit scale and b, q vectors. The min-norm point of a simplex
(MGDA) is such a program with b = q, projections onto the dual cone (UPGrad,
DualProj) with b = 0, once no gradient is much longer than another; float32 is
then enough whatever the losses' scales are.

Mehrotra's predictor-corrector interior point: 5 to 20 iterations of one K x K
factorisation each, the same arithmetic for every problem of a vmapped batch. The
residual, on which the accuracy of the answer rests, is evaluated in twice the
working precision.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiterm_optax._typing import Gramian, Weights

MAX_ITERATIONS = 40

# Up to this many terms the factor is inverted: a batch under vmap then does with one
# triangular solve of LAPACK's for each problem where it had eight.
_MAX_INVERTED = 16


class Solution(NamedTuple):
    """A point, and whether it meets the optimality conditions."""

    z: Float[Array, " K"]
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


class _Iterate(NamedTuple):
    z: Float[Array, " K"]
    slack: Float[Array, " K"]
    dual: Float[Array, " K"]
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
    # z is proportional to q: solve for a q of unit size.
    size = jnp.max(jnp.abs(q))
    size = jnp.where(size > 0, size, 1)
    q = q / size

    def dual_residual(z: Array, slack: Array) -> Array:
        along = _accurate_dot(b[:, None], z)
        return _accurate_dot(c, z, b * along - q, -slack)

    def error(z: Array, slack: Array, dual: Array) -> Array:
        # The residual cannot be known better than its rounding; products of z and
        # slack can, and are driven below, so that pairs that are both zero at the
        # optimum are resolved. A largest z below 1 / K means that the optimum is zero.
        gap = jnp.sqrt(jnp.max(z * slack)) / jnp.maximum(jnp.max(z), 0.5 / count)
        return jnp.maximum(jnp.max(jnp.abs(dual)), gap)

    def direction(
        solve_factored: Callable[[Array], Array],
        z: Array,
        slack: Array,
        dual: Array,
        products: Array,
    ) -> tuple[Array, Array]:
        # (H + S/Z) dz = -dual - products / z, refined once against the matrix
        # without the ridge.
        rhs = -dual - products / z
        dz = solve_factored(rhs)
        dz = dz + solve_factored(rhs - _dot(hessian, dz) - slack / z * dz)
        return dz, -(products + slack * dz) / z

    def step_length(x: Array, dx: Array) -> Array:
        return jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf))

    def body(it: _Iterate) -> _Iterate:
        z, slack, dual = it.z, it.slack, it.dual
        products = z * slack
        mu = jnp.mean(products)
        factor = jnp.linalg.cholesky(hessian + jnp.diag(slack / z) + ridge)
        solve_factored = _solver(factor)
        dz, ds = direction(solve_factored, z, slack, dual, products)
        a = jnp.minimum(1, jnp.minimum(step_length(z, dz), step_length(slack, ds)))
        mu_affine = jnp.mean((z + a * dz) * (slack + a * ds))
        ratio = mu_affine / mu
        dz, ds = direction(
            solve_factored, z, slack, dual, products + dz * ds - ratio**3 * mu
        )
        a = jnp.minimum(step_length(z, dz), step_length(slack, ds))
        # Ever closer to the boundary as the prediction comes true: the last digits
        # then come quadratically.
        a = jnp.minimum(1, (1 - jnp.clip(ratio, 0, 0.005)) * a)
        z = jnp.maximum(z + a * dz, smallest)
        slack = jnp.maximum(slack + a * ds, smallest)
        dual = dual_residual(z, slack)
        now = error(z, slack, dual)
        better = now < it.best_error
        return _Iterate(
            z=z,
            slack=slack,
            dual=dual,
            best=jnp.where(better, z, it.best),
            best_error=jnp.where(better, now, it.best_error),
            # On its way to an optimum at zero the error grows before it falls.
            stalled=jnp.where(
                (now < 0.9 * it.best_error) | (now > 1), 0, it.stalled + 1
            ),
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
        dual=dual_residual(ones, ones),
        best=ones,
        best_error=jnp.asarray(jnp.inf, dtype),
        stalled=jnp.zeros([], jnp.int32),
        iterations=jnp.zeros([], jnp.int32),
    )
    end = jax.lax.while_loop(unfinished, body, start)
    return Solution(size * end.best, end.best_error <= jnp.sqrt(eps), end.iterations)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _solver(factor: Array) -> Callable[[Array], Array]:
    if factor.shape[0] > _MAX_INVERTED:
        return lambda rhs: jax.scipy.linalg.cho_solve((factor, True), rhs)
    root = jax.scipy.linalg.solve_triangular(
        factor, jnp.eye(factor.shape[0], dtype=factor.dtype), lower=True
    )
    return lambda rhs: _dot(_dot(root, rhs), root)


def _accurate_dot(columns: Array, vector: Array, *added: Array) -> Array:
    """``vector @ columns + sum(added)``, rounded about once.

    Error-free products and sums (Dekker, Knuth): what a rounding loses is kept and
    added at the end.
    """

    def add(carry: tuple[Array, Array], term: Array) -> tuple[Array, Array]:
        total, lost = carry
        grown = total + term
        moved = grown - total
        return grown, lost + ((total - (grown - moved)) + (term - moved))

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x = columns[i]
        y = jnp.broadcast_to(vector[i], x.shape)
        product = x * y
        total, lost = add(carry, product)
        return total, lost + _product_error(x, y, product)

    # One short fused kernel a step, also for a batch; a tree of sums is written out
    # level by level.
    zeros = jnp.zeros_like(columns[0])
    carry = jax.lax.fori_loop(0, len(vector), body, (zeros, zeros), unroll=8)
    for term in added:
        carry = add(carry, term)
    return carry[0] + carry[1]


def _product_error(x: Array, y: Array, product: Array) -> Array:
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    rest = x_high * y_high - product
    return ((rest + x_high * y_low) + x_low * y_high) + x_low * y_low


def _halves(x: Array) -> tuple[Array, Array]:
    bits = jnp.finfo(x.dtype).nmant // 2 + 1
    scaled = x * (2.0**bits + 1)
    high = scaled - (scaled - x)
    return high, x - high
