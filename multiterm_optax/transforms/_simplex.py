"""Weights on the simplex that descend a slope, one step at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem


def rate_at(rate: optax.ScalarOrSchedule, count: Any) -> Any:
    """A rate that is a number, or an Optax schedule at this count of steps."""
    return rate(count) if callable(rate) else rate


def check_rate(rate: optax.ScalarOrSchedule, argument: str, name: str) -> None:
    """Refuses a negative number; a schedule cannot be checked."""
    if not callable(rate):
        _checks.non_negative(rate, argument, name)


def weights_of(problem: Problem, shares: jax.Array) -> Weights:
    """The shares of the present terms, scaled to sum to 1; equal if they are all 0."""
    held = problem.only_present(shares)
    mass = jnp.sum(held)
    equal = problem.equal_shares(shares.dtype)
    return jnp.where(mass > 0, held / jnp.where(mass > 0, mass, 1), equal)


def shares_of(problem: Problem, weights: Weights, shares: jax.Array) -> jax.Array:
    """New shares: those of the present terms keep their sum, and the others stay.

    Shares sum to K from the start, so that those of a smaller problem are the same.
    """
    mass = jnp.sum(problem.only_present(shares))
    return problem.keep_absent((mass * weights).astype(shares.dtype), shares)


def descend(
    problem: Problem, weights: Weights, rate: Scalar, slope: jax.Array
) -> Weights:
    """One step down the slope, to the nearest point of the simplex."""
    moved = weights - rate * slope
    if problem.present is not None:
        moved = jnp.where(problem.present, moved, -jnp.inf)
    return problem.only_present(project(moved))


def project(values: jax.Array) -> Weights:
    r"""The nearest point of the simplex: :math:`\max(v_i - \tau, 0)` with sum 1."""
    top = jnp.max(values)
    # Values that lie 1 or more below the largest have no part in the sum, and would
    # cost the others their digits.
    near = jnp.clip(values - jnp.where(jnp.isfinite(top), top, 0), -1, 0)
    counts = jnp.arange(1, len(values) + 1, dtype=near.dtype)
    sums = jnp.cumsum(jnp.sort(near, descending=True))
    return jnp.maximum(near - jnp.max((sums - 1) / counts), 0)
