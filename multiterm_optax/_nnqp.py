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

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiterm_optax._typing import Gramian, Weights

MAX_ITERATIONS = 40

# Up to this many terms the matrix is inverted by eliminations written in jnp: on CPU
# LAPACK is called for each problem of a batch, and not fused with what comes next.
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
    return _solve(*jax.lax.stop_gradient((c, b, q)))


@jax.custom_batching.custom_vmap
def _solve(c: Array, b: Array, q: Array) -> Solution:
    """Solves [K, K, ...], [K, ...], [K, ...]: the axes of a batch come last."""
    batch = jnp.broadcast_shapes(c.shape[2:], b.shape[1:], q.shape[1:])
    if not batch:
        return _minimise(c, b, q)

    def flat(x: Array, rank: int) -> Array:
        # What all problems share stays a single copy.
        own, axes = x.shape[:rank], x.shape[rank:]
        if any(size != 1 for size in axes):
            x = jnp.broadcast_to(x, own + batch)
        return x.reshape(*own, -1)

    c, b = flat(c, 2), flat(b, 1)
    q = jnp.broadcast_to(q, q.shape[:1] + batch).reshape(len(q), -1)
    if len(q) <= _MAX_INVERTED:
        found = _minimise(c, b, q)
    else:
        problems = [jnp.broadcast_to(x, x.shape[:-1] + q.shape[1:]) for x in (c, b, q)]
        found = jax.vmap(_minimise, in_axes=-1, out_axes=-1)(*problems)
    return jax.tree.map(lambda x: x.reshape(x.shape[:-1] + batch), found)


@_solve.def_vmap
def _solve_batch(
    size: int, batched: list[bool], *problem: Array
) -> tuple[Solution, Solution]:
    """Moves the axis of a vmap, one within another too, to the end."""
    del size
    c, b, q = (
        jnp.moveaxis(x, 0, -1) if own else x[..., None]
        for x, own in zip(problem, batched, strict=True)
    )
    found = _solve(c, b, q)
    first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), found)
    return first, jax.tree.map(lambda _: True, found)


def _minimise(c: Array, b: Array, q: Array) -> Solution:
    """One problem, or a batch of them in the last axis, which q has.

    With the batch in the last axis each arithmetic operation is one on vectors of
    problems, whatever K is.
    """
    count, dtype = c.shape[0], c.dtype
    eps = jnp.finfo(dtype).eps
    smallest = jnp.finfo(dtype).tiny ** 0.5
    hessian = c + b[:, None] * b[None, :]
    eye = _eye(count, dtype, c.ndim)
    ridge = 8 * eps * count * eye
    # z is proportional to q: solve for a q of unit size.
    size = jnp.max(jnp.abs(q), axis=0)
    size = jnp.where(size > 0, size, 1)
    q = q / size

    def dual_residual(z: Array, slack: Array) -> Array:
        along = _accurate_dot(b[:, None], z)
        return _accurate_dot(c, z, b * along - q, -slack)

    def error(z: Array, slack: Array, dual: Array) -> Array:
        # The residual cannot be known better than its rounding; products of z and
        # slack can, and are driven below, so that pairs that are both zero at the
        # optimum are resolved. A largest z below 1 / K means that the optimum is zero.
        gap = jnp.sqrt(jnp.max(z * slack, axis=0))
        gap = gap / jnp.maximum(jnp.max(z, axis=0), 0.5 / count)
        return jnp.maximum(jnp.max(jnp.abs(dual), axis=0), gap)

    def step_length(z: Array, dz: Array, slack: Array, ds: Array) -> Array:
        return jnp.min(jnp.minimum(_reach(z, dz), _reach(slack, ds)), axis=0)

    def body(it: _Iterate) -> _Iterate:
        z, slack, dual = it.z, it.slack, it.dual
        products = z * slack
        mu = jnp.mean(products, axis=0)
        diagonal = slack / z
        # dual + H dz - ds = 0, z ds + slack dz + second = -z slack, so that
        # (H + S/Z) dz = rhs.
        solve_factored = _solver(hessian + eye * diagonal + ridge)

        def direction(second: Array | float) -> tuple[Array, Array]:
            # Refined once against the matrix without the ridge.
            rhs = -dual - slack - second / z

            def refine(_: Array | int, dz: Array) -> Array:
                return dz + solve_factored(rhs - _dot(hessian, dz) - diagonal * dz)

            if q.ndim == 1:
                dz = refine(0, solve_factored(rhs))
            else:
                # A loop: half as much to compile.
                rhs = _alone(rhs)
                dz = jax.lax.fori_loop(0, 2, refine, jnp.zeros_like(rhs))
            return dz, -slack - second / z - diagonal * dz

        dz, ds = direction(0.0)
        a = jnp.minimum(1, step_length(z, dz, slack, ds))
        ratio = jnp.mean((z + a * dz) * (slack + a * ds), axis=0) / mu
        # A pair that shrinks evenly is zero in both at the optimum. The path there is
        # smooth in the root of the product only, where the second order is fourfold;
        # without this such pairs would fall by 3/8 an iteration.
        even = jnp.abs(dz / z + 0.5) < 0.03
        even = even & (ratio < 0.3) & (it.best_error < 0.1)
        dz, ds = direction(jnp.where(even, 4, 1) * dz * ds - ratio**3 * mu)
        a = step_length(z, dz, slack, ds)
        # Ever closer to the boundary as the prediction comes true: the last digits
        # then come quadratically.
        a = jnp.minimum(1, (1 - jnp.clip(ratio, 0, 0.005)) * a)
        z = jnp.maximum(z + a * dz, smallest)
        slack = jnp.maximum(slack + a * ds, smallest)
        dual = dual_residual(z, slack)
        now = error(z, slack, dual)
        better = now < it.best_error
        end = _Iterate(
            z=z,
            slack=slack,
            dual=dual,
            best=jnp.where(better, z, it.best),
            best_error=jnp.where(better, now, it.best_error),
            # On its way to an optimum at zero the error grows before it falls.
            stalled=jnp.where(
                (now < 0.9 * it.best_error)
                | ((now > 1) & (it.best_error > jnp.sqrt(eps))),
                0,
                it.stalled + 1,
            ),
            iterations=it.iterations + 1,
        )
        if q.ndim == 1:
            return end
        # Problems of a batch that are done stay as they are.
        go = unfinished(it)
        return jax.tree.map(lambda new, old: jnp.where(go, new, old), end, it)

    def unfinished(it: _Iterate) -> Array:
        return (
            (it.best_error > eps) & (it.stalled < 4) & (it.iterations < MAX_ITERATIONS)
        )

    ones = jnp.ones_like(q)
    start = _Iterate(
        z=ones,
        slack=ones,
        dual=jnp.sum(hessian, axis=0) - q - 1,
        best=ones,
        # Like the problem: inside shard_map they then differ by device as it does.
        best_error=jnp.full_like(size, jnp.inf),
        stalled=jnp.zeros_like(size, jnp.int32),
        iterations=jnp.zeros_like(size, jnp.int32),
    )
    end = jax.lax.while_loop(lambda it: jnp.any(unfinished(it)), body, start)
    return Solution(size * end.best, end.best_error <= jnp.sqrt(eps), end.iterations)


def _dot(a: Array, b: Array) -> Array:
    """``a @ b``, also for a matrix and a vector of each problem of a batch."""
    if a.ndim < 3:
        return jnp.matmul(a, b, precision="highest")
    # A reduction would run along the first axis, not in vectors of problems.
    b = _alone(b)
    return _alone(functools.reduce(jnp.add, (a[:, i] * b[i] for i in range(len(b)))))


def _reach(x: Array, dx: Array) -> Array:
    """How far each x can go along dx."""
    return jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf)


def _solver(matrix: Array) -> Callable[[Array], Array]:
    if matrix.shape[0] > _MAX_INVERTED:
        factor = jnp.linalg.cholesky(matrix)
        return lambda rhs: jax.scipy.linalg.cho_solve((factor, True), rhs)
    root = _inverse_root(matrix)
    if root.ndim == 2:
        return lambda rhs: _dot(_dot(root, rhs), root)
    root = _alone(root)
    transposed = jnp.swapaxes(root, 0, 1)
    return lambda rhs: _dot(transposed, _dot(root, rhs))


def _inverse_root(matrix: Array) -> Array:
    """The inverse of a positive definite matrix's lower factor, two pivots a step."""
    count, dtype = matrix.shape[0], matrix.dtype
    even = count + count % 2
    # Below its diagonal the matrix is replaced by the inverse of a factor with ones
    # on the diagonal, which ends up holding the pivots.
    a = matrix
    if even > count:
        a = jnp.broadcast_to(_eye(even, dtype, a.ndim), (even, even, *a.shape[2:]))
        a = a.at[:count, :count].set(matrix)
    index = jnp.arange(even).reshape(-1, *(1,) * (matrix.ndim - 2))

    def eliminate(a: Array, row: Array, k: Array) -> Array:
        factors = jnp.where(index > k, row / row[k], 0)
        column = (index > k)[:, None] & (index == k)
        row = jnp.where(index == k, 1, row)
        return jnp.where(column, 0, a) - factors[:, None] * row

    def step(i: Array, a: Array) -> Array:
        k = 2 * i
        first, second = _alone(a[k]), _alone(a[k + 1])
        # The second row as the first pivot leaves it.
        factor = first[k + 1] / first[k]
        row = jnp.where(index == k, 1, first)
        second = jnp.where(index == k, 0, second) - factor * row
        return eliminate(eliminate(a, first, k), second, k + 1)

    a = jax.lax.fori_loop(0, even // 2, step, a)[:count, :count]
    ones, index = _eye(count, dtype, a.ndim), index[:count]
    pivots = jnp.sum(jnp.where(ones > 0, a, 0), axis=0)
    root = jnp.where(index[:, None] > index, a, 0) + ones
    return root * jax.lax.rsqrt(pivots)[:, None]


def _eye(count: int, dtype: Any, rank: int) -> Array:
    return jnp.eye(count, dtype=dtype).reshape(count, count, *(1,) * (rank - 2))


def _alone(x: Array) -> Array:
    """In a batch: x computed once, not again for each operation that reads it."""
    return x if x.ndim == 1 else jax.lax.optimization_barrier(x)


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

    vector = _alone(vector)
    products = columns * vector[:, None]
    errors = _product_error(columns, vector[:, None], products)

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, lost = add(carry, products[i])
        return total, lost + errors[i]

    # A tree of sums would be written out level by level.
    zeros = jnp.zeros_like(products[0])
    carry = jax.lax.fori_loop(0, len(vector), body, (zeros, zeros), unroll=16)
    for term in added:
        carry = add(carry, term)
    return _alone(carry[0] + carry[1])


def _product_error(x: Array, y: Array, product: Array) -> Array:
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    rest = x_high * y_high - product
    return ((rest + x_high * y_low) + x_low * y_high) + x_low * y_low


def _halves(x: Array) -> tuple[Array, Array]:
    bits = jnp.finfo(x.dtype).nmant // 2 + 1
    scaled = x * (2.0**bits + 1)
    high = scaled - (scaled - x)
    return high, x - high
