"""The min-norm point of the gradients' convex hull, for MGDA and its variants."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _nnqp, _terms
from multiterm_optax._typing import Gramian, Weights
from multiterm_optax._weighting import Problem
from multiterm_optax.weightings import _units

Normalization = Literal["l2", "loss", "loss+"]
BY_LOSS = ("loss", "loss+")


def check(normalization: Any, name: str) -> None:
    """Refuses what is not one of the normalisations."""
    _checks.one_of(normalization, "normalization", name, (None, "l2", "loss", "loss+"))


def find(
    problem: Problem, normalization: Normalization | None
) -> tuple[Weights, jax.Array]:
    """Weights of the min-norm point; whether they meet the optimality conditions."""
    return _min_norm(_normalized(problem, normalization), problem)


def _normalized(problem: Problem, normalization: Normalization | None) -> Gramian:
    gramian = problem.gramian
    if normalization is None:
        return gramian
    norms = jnp.sqrt(problem.squared_norms)
    divisors = jnp.ones_like(norms)
    if normalization in ("l2", "loss+"):
        divisors = divisors * jnp.where(norms > 0, norms, 1)
    if normalization in BY_LOSS:
        losses = jnp.abs(problem.losses).astype(gramian.dtype)
        divisors = divisors * jnp.where(losses > 0, losses, 1)
    return _units.divided(gramian, divisors)


def _min_norm(gramian: Gramian, problem: Problem) -> tuple[Weights, jax.Array]:
    present = problem.present
    if problem.num_terms == 1:
        return jnp.ones_like(gramian[0]), jnp.isfinite(gramian[0, 0])
    # In units of about each gradient's length nothing overflows or underflows.
    scaled, units, zero = _units.split(gramian)
    shortest = jnp.min(jnp.where(zero, jnp.inf, units))
    inverse = jnp.where(jnp.all(zero), 1, shortest) / units
    if present is not None:
        zero = zero & present  # an absent gradient is not a zero gradient
    if problem.num_terms == 2:
        weights, converged = _closed_form(scaled, inverse)
        if present is not None:
            weights = jnp.where(jnp.all(present), weights, present)
    else:
        weights, converged = _by_program(scaled, inverse, present)
    # A zero gradient is itself the shortest vector of the hull.
    among_zeros = zero.astype(gramian.dtype)
    among_zeros = among_zeros / jnp.maximum(jnp.sum(among_zeros), 1)
    return (
        jnp.where(jnp.any(zero), among_zeros, weights),
        (jnp.any(zero) | converged) & jnp.all(jnp.isfinite(gramian)),
    )


def _closed_form(scaled: Gramian, inverse: Weights) -> tuple[Weights, jax.Array]:
    # Both gradients in units of the longer one's.
    shrink = jnp.min(inverse) / inverse
    relative = scaled * shrink[:, None] * shrink[None, :]
    # Each weight comes from a difference of its own. As one minus the other, the weight
    # of a much longer gradient would be lost, and the conflict would remain.
    parts = jnp.diagonal(relative)[::-1] - relative[0, 1]
    apart = jnp.sum(parts)
    weights = jnp.clip(parts / jnp.where(apart > 0, apart, 1), 0, 1)
    return jnp.where(apart > 0, weights, 0.5), jnp.ones([], jnp.bool_)


def _by_program(
    scaled: Gramian, inverse: Weights, present: Bool[Array, " K"] | None
) -> tuple[Weights, jax.Array]:
    # Minimises |sum z_i u_i|^2 + (b.z - 1)^2 over z >= 0, for gradients u in their
    # units and b = 1 / units. Its optimality conditions are those on the simplex, up to
    # the sum of w.
    if present is None:
        solution = _nnqp.solve(scaled, inverse, inverse)
        weights = solution.z * inverse
        return weights / jnp.sum(weights), solution.converged
    # An absent gradient is orthogonal to the others, and -1 keeps its multiplier at 0.
    inverse = _terms.only_present(present, inverse)
    solution = _nnqp.solve(scaled, inverse, jnp.where(present, inverse, -1))
    weights = solution.z * inverse
    none_present = ~jnp.any(present)
    weights = weights / jnp.where(none_present, 1, jnp.sum(weights))
    return weights, none_present | solution.converged
