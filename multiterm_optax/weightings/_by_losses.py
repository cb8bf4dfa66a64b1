"""What methods that read losses share: checks, ratios, sums."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _checks
from multiterm_optax._typing import Losses, Scalar, Weights
from multiterm_optax.weightings import _absent

Total = Scalar | Literal["terms"]


def ratio(losses: Losses, reference: jax.Array) -> Losses:
    """``losses / reference``; 1, no change, where the reference is zero."""
    known = reference != 0
    return jnp.where(known, losses / jnp.where(known, reference, 1), 1)


def check_total(value: Any, name: str) -> None:
    """Refuses what is neither ``"terms"`` nor a positive number."""
    if isinstance(value, str):
        if value != "terms":
            raise ValueError(
                f"{name}: sum_to must be 'terms' or a positive number, found {value!r}."
            )
        return
    _checks.in_range(value, "sum_to", name, low=0.0, open_low=True, open_high=True)


def total(
    sum_to: Total, num_terms: int, present: Bool[Array, " K"] | None = None
) -> Scalar:
    """What the weights of the terms that are there are to add up to."""
    if isinstance(sum_to, str):
        return 1.0 * _absent.number(present, num_terms)
    return sum_to


def summing_to(
    weights: Weights, sum_to: Scalar, present: Bool[Array, " K"] | None = None
) -> Weights:
    """Scales non-negative weights to a sum; equal weights where all are zero.

    Absent terms must have the weight 0 already.
    """
    whole = jnp.sum(weights)
    shares = weights / jnp.where(whole == 0, 1, whole)
    return sum_to * jnp.where(
        whole == 0, _absent.equal_shares(present, weights), shares
    )
