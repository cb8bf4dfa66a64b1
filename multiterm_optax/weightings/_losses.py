"""What methods that read losses share: ratios and sums."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from multiterm_optax import _checks
from multiterm_optax._typing import Losses, Scalar, Weights
from multiterm_optax._weighting import Problem

SumTo = Scalar | Literal["terms"]


def ratio(losses: Losses, reference: jax.Array) -> Losses:
    """``losses / reference``; 1, no change, where the reference is zero."""
    known = reference != 0
    return jnp.where(known, losses / jnp.where(known, reference, 1), 1)


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
    """What the weights of so many terms are to add up to."""
    return 1.0 * num_terms if isinstance(sum_to, str) else sum_to


def summing_to(problem: Problem, weights: Weights, target: Scalar) -> Weights:
    """Scales the present terms' non-negative weights to a sum; equal if all are 0."""
    weights = problem.only_present(weights)
    total = jnp.sum(weights)
    shares = weights / jnp.where(total == 0, 1, total)
    equal = problem.equal_shares(weights.dtype)
    return target * jnp.where(total == 0, equal, shares)
