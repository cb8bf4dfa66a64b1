# Longer than most: one solver for two methods.
"""The solver that Nash-MTL and FairGrad share.

For gradients of length 1 with the gramian C it finds z > 0 with

    z_i (C z)_i^alpha = q_i .

Such a z is the only minimum of z.C.z / 2 less a concave function, and there is one
unless a combination of the gradients with positive weights is zero.

Besides z, its loop keeps the slack s, which stands for C z. Every iterate lies on the
curve z_i s_i^alpha = q_i, and Newton's steps for C z = s are taken as they are in
whichever of z_i and s_i grows; the curve gives the other one, so that both stay
positive. There is no line search. For an alpha between 1/2 and 5 it takes 5 to 30
iterations, each with one K x K factorisation. The residual, on which the accuracy of
the answer rests, is evaluated in twice the working precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiterm_optax import _linear
from multiterm_optax._typing import Gramian, Scalar, Weights
from multiterm_optax._weighting import Problem
from multiterm_optax.weightings import _units

MAX_ITERATIONS = 100

# A point is a solution if a further Newton step would change nothing by more than this.
SOLVED = 0.01


class _Iterate(NamedTuple):
    z: Weights
    slack: Weights
    best: Weights
    error: Float[Array, ""]
    stalled: Int[Array, ""]
    iterations: Int[Array, ""]


def find(
    problem: Problem, alpha: Scalar, shares: Weights
) -> tuple[Weights, Bool[Array, ""]]:
    """Weights w > 0 with w_i (G w)_i^alpha = shares_i; says whether they solve it.

    Terms without a gradient or a share are left out and get the weight 0.
    """
    gramian = problem.gramian
    alpha = jnp.asarray(alpha, gramian.dtype)
    if problem.num_terms == 1:
        return jnp.ones_like(gramian[0]), jnp.isfinite(gramian[0, 0])
    cosines, lengths, silent = _units.cosines(gramian)
    active = ~silent & (shares > 0)
    pairs = active[:, None] & active[None, :]
    cosines = jnp.where(pairs, cosines, jnp.eye(len(active), dtype=cosines.dtype))
    # Lengths relative to a power of two: a scale of all gradients costs no digit.
    exponents = jnp.where(active, jnp.frexp(lengths)[1], 0)
    middle = jnp.sum(exponents) // jnp.maximum(jnp.sum(active), 1)
    relative = jnp.ldexp(lengths, -middle)
    # w = z / lengths, so that q = shares * lengths^(1 - alpha).
    logs = jnp.log(jnp.where(active, shares, 1)) + (1 - alpha) * jnp.log(relative)
    highest = jnp.max(jnp.where(active, logs, -jnp.inf))
    lowest = jnp.min(jnp.where(active, logs, jnp.inf))
    centre = jnp.where(jnp.any(active), (highest + lowest) / 2, 0)
    z, converged = solve(cosines, jnp.where(active, logs - centre, 0), alpha)
    weights = z * jnp.exp(centre / (1 + alpha)) / relative
    # The scale 2^middle of the gradients, to the power of -2 alpha / (1 + alpha).
    power = middle.astype(z.dtype) * (-2 * alpha / (1 + alpha))
    whole = jnp.floor(power)
    weights = jnp.ldexp(weights * jnp.exp2(power - whole), whole.astype(jnp.int32))
    weights = jnp.where(active, weights, 0)
    if problem.present is not None:
        alone = problem.num_present == 1
        weights = jnp.where(alone, problem.present.astype(weights.dtype), weights)
        converged = alone | converged
    return weights.astype(gramian.dtype), converged


# Compiled once for each K also when called outside jit.
@jax.jit
def solve(
    c: Gramian, log_q: Weights, alpha: Float[Array, ""]
) -> tuple[Weights, Bool[Array, ""]]:
    """Finds ``z > 0`` with ``log(z) + alpha * log(c @ z) == log_q``; whether it did.

    If there is no solution to within the rounding of ``c``, z is the solution for ``c``
    with a little added to its diagonal, which always exists.
    """

    def attempt(
        found: tuple[Weights, Array], added: Array
    ) -> tuple[tuple[Weights, Array], None]:
        z, error = found
        end = _newton(c, log_q, alpha, added, error <= SOLVED)
        solved = error <= SOLVED
        # What the second attempt finds solves another problem.
        error = jnp.where(solved | (added > 0), error, end.error)
        return (jnp.where(solved, z, end.best), error), None

    start = log_q, jnp.full_like(log_q[0], jnp.inf)
    attempts = jnp.array([0, _ridge(c)], c.dtype)
    (z, error), _ = jax.lax.scan(attempt, start, attempts)
    return z, error <= SOLVED


def _ridge(c: Gramian) -> float:
    return 8 * len(c) * float(jnp.finfo(c.dtype).eps)


def _newton(
    c: Gramian, log_q: Weights, alpha: Array, added: Array, solved: Array
) -> _Iterate:
    eps = float(jnp.finfo(c.dtype).eps)
    smallest = float(jnp.finfo(c.dtype).tiny) ** 0.75

    def improve(it: _Iterate) -> _Iterate:
        z, slack = it.z, it.slack
        rest = -_linear.accurate_dot(c, z, added * z, -slack)
        # C dz - ds = rest, and dz / z + alpha ds / s = 0 along the curve.
        diagonal = slack / (alpha * z)
        solve_factored = _linear.solver(c + jnp.diag(diagonal + _ridge(c)))
        dz = solve_factored(rest)
        # Refined once against the matrix without the ridge.
        dz = dz + solve_factored(rest - _linear.dot(c, dz) - (added + diagonal) * dz)
        now = jnp.max(jnp.abs(dz) / z) * jnp.maximum(1, 1 / alpha)
        grows = dz > 0
        z = z + jnp.where(grows, dz, 0)
        slack = slack + jnp.where(grows, 0, -diagonal * dz)
        later = jnp.where(grows, z, jnp.exp(log_q - alpha * jnp.log(slack)))
        slack = jnp.where(grows, jnp.exp((log_q - jnp.log(z)) / alpha), slack)
        better = now < it.error
        stalled = jnp.where(now < 0.5 * it.error, 0, it.stalled + 1)
        return _Iterate(
            z=jnp.maximum(later, smallest),
            slack=jnp.maximum(slack, smallest),
            best=jnp.where(better, it.z, it.best),
            error=jnp.where(better, now, it.error),
            stalled=jnp.where(jnp.isfinite(now), stalled, MAX_ITERATIONS),
            iterations=it.iterations + 1,
        )

    def unfinished(it: _Iterate) -> Array:
        # Near the solution the error falls with its square, until it is a rounding.
        patience = jnp.where(it.error < 0.1, 5, MAX_ITERATIONS)
        patience = jnp.where(it.error < eps**0.5, 3, patience)
        going = (it.stalled < patience) & (it.iterations < MAX_ITERATIONS)
        return going & (it.error > eps) & ~solved

    start, number = jnp.exp(log_q / (1 + alpha)), log_q[0]
    # Made from the problem: inside shard_map they then differ by device, too.
    zero = jnp.zeros_like(number, jnp.int32)
    infinite = jnp.full_like(number, jnp.inf)
    first = _Iterate(start, start, start, infinite, zero, zero)
    return jax.lax.while_loop(unfinished, improve, first)
