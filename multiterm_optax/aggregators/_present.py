"""The mask of the present terms where K is known from the updates alone."""

from typing import Any

import jax
from jaxtyping import Array, Bool

from multiterm_optax import _checks


def of_leaves(value: Any, updates: Any, name: str) -> Bool[Array, " K"] | None:
    """Returns the mask; every leaf of ``updates`` must have its K terms."""
    leaves = jax.tree.leaves(updates)
    if value is None or not leaves:
        return None
    count = leaves[0].shape[0]
    _checks.term_axis(updates, None, name, count)
    return _checks.present(value, name, count)
