r"""The one K x K solver: non-negative quadratic programs on a gramian.

.. math::

  \min_{z \ge 0} \tfrac12 z^T C z + \tfrac12 (b \cdot z)^2 - q \cdot z

with C a gramian of unit scale and b, q vectors. The min-norm point of a simplex
(MGDA) is such a program with b = q, projections onto the dual cone (UPGrad,
DualProj) with b = 0, once no gradient is much longer than another; float32 is
then enough whatever the losses' scales are.

The method is Mehrotra's predictor-corrector interior point, with 6 to 20 iterations of
one K x K factorisation each. The residual, on which the accuracy of the answer rests,
is evaluated in twice the working precision. What it promises:

- With s the slack of the optimality conditions, C z + b (b z) - q = s for z, s >= 0
  and z s = 0, and for a q whose largest element is 1, the error is the residual of the
  equation, relative to 1 + sum(z), or the root of the largest product z s, whichever is
  larger.
- It goes on until the error is two roundings, or no longer falls and is below the root
  of a rounding. Only then is ``converged`` true.
- Where a predictor does not come true, a step ends where the products z s are of one
  size, to within a factor of 100. Without this, Mehrotra's method can cycle for ever,
  as it does on one in some thousand random problems.
- Iterations beyond :data:`SAFE_AFTER` are a second attempt, without prediction: plain
  steps along the central path. They converge by themselves, only more slowly (about 35
  iterations from the start).
- Many programs of one gramian with many terms first go to :mod:`._faces`, which is much
  faster, and come here only where it cannot verify two roundings.
- After :data:`MAX_ITERATIONS`, or when the numbers are not finite, z is the point with
  the smallest error so far, and ``converged`` is false. z is never negative.

A gramian in floating point knows its gradients to the root of a rounding: rows that
nearly cancel, so that sum(z) is large, have their direction to about sum(z) times
that root, here and in any other solver of the gramian.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiterm_optax import _faces, _linear
from multiterm_optax._typing import Gramian, Weights

SAFE_AFTER = 25
MAX_ITERATIONS = 80

# Up to this many terms the interior point solves every problem of a batch.
_SMALL = 16

# This many rows of a batch are left to the interior point at a time.
_TOGETHER = 16


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
    method = _method(*jax.lax.stop_gradient((c, b)))
    q, size = _unit(jax.lax.stop_gradient(q))
    end = jax.lax.while_loop(
        method.unfinished, lambda it: method.improve(q, it), method.start(q)
    )
    return Solution(size * end.best, method.good(end), end.iterations)


@jax.jit
def solve_each(c: Gramian, q: Float[Array, "N K"]) -> Solution:
    """The same with b = 0 for every row of q.

    With many terms, products with c that all rows share come first, and the interior
    point solves the rows that these do not solve to two roundings.
    """
    c, q = jax.lax.stop_gradient((c, q))
    q, size = jax.vmap(_unit)(q)
    method = _method(c, jnp.zeros_like(c[0]))
    if len(c) <= _SMALL:
        found = _interior(method, q, jnp.ones_like(q[:, 0], jnp.bool_))
    else:
        found = _remaining(method, q, _faces.solve_each(c, q))
    return found._replace(z=size[:, None] * found.z)


def _remaining(
    method: "_Method", q: Float[Array, "N K"], found: _faces.Found
) -> Solution:
    """Solves the rows that are not solved yet, some at a time; most often none."""
    together = min(len(q), _TOGETHER)

    def some(carry: tuple[Solution, Array]) -> tuple[Solution, Array]:
        solution, waiting = carry
        rows = jnp.argsort(~waiting)[:together]
        wanted = waiting[rows]
        end = _interior(method, q[rows], wanted)

        def put(old: Array, new: Array) -> Array:
            new = jnp.where(wanted.reshape(-1, *(1,) * (new.ndim - 1)), new, old[rows])
            return old.at[rows].set(new)

        return jax.tree.map(put, solution, end), waiting.at[rows].set(False)

    start = Solution(found.z, found.solved, found.iterations)
    return jax.lax.while_loop(
        lambda carry: jnp.any(carry[1]), some, (start, ~found.solved)
    )[0]


def _interior(
    method: "_Method", q: Float[Array, "N K"], wanted: Bool[Array, " N"]
) -> Solution:
    """The wanted rows, in one loop that ends with the last of them.

    A loop over a batch, and not a batch of loops, which checkify cannot check.
    """

    def going(its: _Iterate) -> Bool[Array, " N"]:
        return jax.vmap(method.unfinished)(its) & wanted

    def improve(its: _Iterate) -> _Iterate:
        now = going(its)
        later = jax.vmap(method.improve)(q, its)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(now.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, later, its)

    end = jax.lax.while_loop(
        lambda its: jnp.any(going(its)), improve, jax.vmap(method.start)(q)
    )
    return Solution(end.best, jax.vmap(method.good)(end), end.iterations)


def _unit(q: Weights) -> tuple[Weights, Float[Array, ""]]:
    # z is proportional to q: solve for a q of unit size.
    size = jnp.max(jnp.abs(q))
    size = jnp.where(size > 0, size, 1)
    return q / size, size


class _Method(NamedTuple):
    """The parts of the loop, for one q of unit size."""

    start: Callable[[Weights], _Iterate]
    improve: Callable[[Weights, _Iterate], _Iterate]
    unfinished: Callable[[_Iterate], Array]
    good: Callable[[_Iterate], Array]


def _method(c: Gramian, b: Weights) -> _Method:
    eps = float(jnp.finfo(c.dtype).eps)
    smallest = float(jnp.finfo(c.dtype).tiny) ** 0.5
    hessian = c + b[:, None] * b[None, :]
    ridge = 8 * eps * len(b)

    def error(z: Array, slack: Array, dual: Array) -> Array:
        gap = jnp.sqrt(jnp.max(z * slack))
        return jnp.maximum(jnp.max(jnp.abs(dual)) / (1 + jnp.sum(z)), gap)

    def good(it: _Iterate) -> Array:
        return it.best_error <= eps**0.5 * (1 + jnp.sum(it.best))

    def improve(q: Weights, it: _Iterate) -> _Iterate:
        z, slack, dual = it.z, it.slack, it.dual
        diagonal = slack / z
        # dual + H dz - ds = 0, z ds + slack dz + second = -z slack, so that
        # (H + S/Z) dz = rhs.
        solve_factored = _linear.solver(hessian + jnp.diag(diagonal + ridge))

        def direction(second: Array | float) -> tuple[Array, Array]:
            rhs = -dual - slack - second / z
            dz = solve_factored(rhs)
            # Refined once against the matrix without the ridge.
            dz = dz + solve_factored(rhs - _linear.dot(hessian, dz) - diagonal * dz)
            return dz, -slack - second / z - diagonal * dz

        def boundary(dz: Array, ds: Array) -> Array:
            return jnp.min(jnp.minimum(_reach(z, dz), _reach(slack, ds)))

        def products(a: Array, dz: Array, ds: Array) -> Array:
            return (z + a * dz) * (slack + a * ds)

        mu = jnp.mean(z * slack)
        dz, ds = direction(0.0)
        ratio = jnp.mean(products(jnp.minimum(1, boundary(dz, ds)), dz, ds)) / mu
        safe = it.iterations >= SAFE_AFTER
        true = (ratio < 0.26) & ~safe
        # A pair that shrinks evenly is zero in both at the optimum. The path there is
        # smooth in the root of the product only, where the second order is fourfold;
        # without this such pairs would fall by 3/8 an iteration.
        even = (jnp.abs(dz / z + 0.5) < 0.03) & true & (it.best_error < 0.1)
        second = jnp.where(safe, 0, jnp.where(even, 4, 1) * dz * ds)
        centre = jnp.where(safe, jnp.maximum(ratio**3, 0.1), ratio**3)
        dz, ds = direction(second - centre * mu)
        # The better the prediction comes true, the closer the step goes to the
        # boundary, so that the last digits come quadratically.
        a = (1 - jnp.clip(ratio, 0, 0.005)) * boundary(dz, ds)
        shares = jnp.array([1, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1], z.dtype)
        shares = shares * jnp.minimum(1, a)
        ends = jax.vmap(products, in_axes=(0, None, None))(shares, dz, ds)
        close = jnp.min(ends, axis=1) >= 0.01 * jnp.mean(ends, axis=1)
        longest = jnp.max(jnp.where(close, shares, -1))
        a = jnp.where(true | ~jnp.any(close), shares[0], longest)
        z = jnp.maximum(z + a * dz, smallest)
        slack = jnp.maximum(slack + a * ds, smallest)
        along = _linear.accurate_dot(b[:, None], z)
        dual = _linear.accurate_dot(c, z, b * along - q, -slack)
        now = error(z, slack, dual)
        better = now < it.best_error
        stalled = jnp.where(now < 0.9 * it.best_error, 0, it.stalled + 1)
        return _Iterate(
            z=z,
            slack=slack,
            dual=dual,
            best=jnp.where(better, z, it.best),
            best_error=jnp.where(better, now, it.best_error),
            stalled=jnp.where(jnp.isfinite(now), stalled, MAX_ITERATIONS),
            iterations=it.iterations + 1,
        )

    def unfinished(it: _Iterate) -> Array:
        # Far from the optimum the error may rise for long before it falls.
        patience = jnp.where(good(it), 4, MAX_ITERATIONS)
        return (
            (it.best_error > 2 * eps)
            & (it.stalled < patience)
            & (it.iterations < MAX_ITERATIONS)
        )

    def start(q: Weights) -> _Iterate:
        ones, number = jnp.ones_like(q), jnp.max(q)
        return _Iterate(
            z=ones,
            slack=ones,
            dual=jnp.sum(hessian, axis=0) - q - 1,
            best=ones,
            # Made from the problem: inside shard_map they then differ by device, too.
            best_error=jnp.full_like(number, jnp.inf),
            stalled=jnp.zeros_like(number, jnp.int32),
            iterations=jnp.zeros_like(number, jnp.int32),
        )

    return _Method(start, improve, unfinished, good)


def _reach(x: Array, dx: Array) -> Array:
    """How far each x can go along dx."""
    return jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf)
