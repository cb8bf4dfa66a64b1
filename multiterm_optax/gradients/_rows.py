"""Arguments of functions with losses by row: rows, their owners and their weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import keystr
from jaxtyping import Array

from multiterm_optax import _checks, _words


def normalized(
    row_terms: Array, row_weights: Any, num_terms: int, reduction: str
) -> Array:
    """The factor of each row's loss in its term's loss."""
    if row_weights is None:
        weights = jnp.ones(row_terms.shape, jnp.result_type(float))
    else:
        weights = jnp.asarray(row_weights, jnp.result_type(float))
    if reduction == "sum":
        return weights
    owners = row_terms[None, :] == jnp.arange(num_terms)[:, None]
    totals = jnp.sum(jnp.where(owners, weights[None, :], 0), axis=1)
    total = totals[jnp.clip(row_terms, 0, num_terms - 1)]
    return weights / jnp.where(total > 0, total, 1)


def integers(row_terms: Any, name: str) -> Array:
    """The owners of the rows as an array; refuses anything but integers."""
    try:
        numbers = jnp.asarray(row_terms)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or not jnp.issubdtype(numbers.dtype, jnp.integer):
        found = _words.describe(row_terms) if numbers is None else numbers.dtype
        raise TypeError(f"{name}: row_terms must be integers, found {found}.")
    return numbers


def check(rows: Any, row_terms: Array, name: str) -> int:
    """Returns B; refuses rows that do not fit their owners."""
    if row_terms.ndim != 1 or row_terms.shape[0] == 0:
        raise ValueError(
            f"{name}: row_terms must have shape (B,) with B at least 1, found "
            f"{row_terms.shape}."
        )
    num_rows = row_terms.shape[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != num_rows:
            raise ValueError(
                f"{name}: rows{keystr(path)} must have {num_rows} rows, as row_terms, "
                f"found shape {jnp.shape(leaf)}."
            )
    return num_rows


def row_weights(value: Any, num_rows: int, name: str) -> Array:
    """The weights of the rows as an array [B]; refuses those that cannot be weights."""
    try:
        weights = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: row_weights must be numbers, found {_words.describe(value)}."
        ) from None
    if weights.shape != (num_rows,):
        raise ValueError(
            f"{name}: row_weights must have shape ({num_rows},), one for each of "
            f"row_terms, found {weights.shape}."
        )
    traced = any(isinstance(one, Tracer) for one in jax.tree.leaves(value))
    # Booleans, which are refused elsewhere, include or exclude rows.
    if weights.dtype != jnp.bool_ and not traced:
        _checks.non_negative(value, "row_weights", name, array=True)
    return weights


def check_losses(losses: Any, size: int, name: str) -> None:
    """Refuses what is not one loss for each of ``size`` rows."""
    if getattr(losses, "shape", None) != (size,):
        found = getattr(losses, "shape", type(losses).__name__)
        raise ValueError(
            f"{name}: row_losses_fn must return one loss for each row, shape "
            f"({size},) for the {size} rows of a pass, found {found}."
        )
    _checks.floating(losses, "the result of row_losses_fn", name)
