"""Ratios and sums for the methods that read losses."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from multiterm_optax import _checks
from multiterm_optax._typing import Losses, Scalar, Weights
from multiterm_optax._weighting import Problem

SumTo = Scalar | Literal["terms"]


def ratio(losses: Losses, reference: jax.Array) -> Losses:
    """``abs(losses / reference)``, or 1 where the reference is zero.

    Finite for finite losses, and so is the sum of a million ratios.
    """
    nonzero = reference != 0
    quotient = jnp.abs(losses / jnp.where(nonzero, reference, 1))
    quotient = jnp.where(jnp.isfinite(losses), bounded(quotient), quotient)
    return jnp.where(nonzero, quotient, 1)


def bounded(values: jax.Array) -> jax.Array:
    """Keeps what has overflowed at a number whose sums are still finite."""
    return jnp.minimum(values, float(jnp.finfo(values.dtype).max) / 2**20)


def check_sum_to(value: Any, name: str) -> None:
    """Refuses what is neither ``"terms"`` nor a positive number."""
    if isinstance(value, str):
        if value != "terms":
            raise ValueError(
                f"{name}: sum_to must be 'terms' or a positive number, found {value!r}."
            )
        return
    _checks.in_range(value, "sum_to", name, low=0.0, open_low=True, open_high=True)


def target_sum(sum_to: SumTo, num_terms: Scalar) -> Scalar:
    """The sum that the weights of this many terms should have."""
    return 1.0 * num_terms if isinstance(sum_to, str) else sum_to


def summing_to(problem: Problem, weights: Weights, target_sum: Scalar) -> Weights:
    """Scales the present terms' non-negative weights to a sum; all 0 become equal."""
    weights = problem.only_present(weights)
    total = jnp.sum(weights)
    shares = weights / jnp.where(total == 0, 1, total)
    equal = problem.equal_shares(weights.dtype)
    return target_sum * jnp.where(total == 0, equal, shares)


def softmax(problem: Problem, scores: jax.Array) -> Weights:
    """Shares of the present terms, the exponentials of the scores over their sum.

    An infinite score is one that is very large: it takes all, or nothing.
    """
    limit = float(jnp.finfo(scores.dtype).max) / 2**20
    scores = jnp.clip(scores, -limit, limit)
    powers = jnp.exp(scores - problem.largest(scores))
    return summing_to(problem, powers, 1.0)
