"""Weights that never change: what every other method is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _terms, _words
from multiterm_optax._typing import Gramian, Losses, Weights
from multiterm_optax._weighting import Weighting
from multiterm_optax.weightings import _absent


def equal() -> Weighting:
    r"""Equal weights, :math:`w_i = 1 / K`: the mean of the losses that are there.

    Reads neither gradients nor losses.

    Returns:
      A :class:`multiterm_optax.Weighting` whose state is the weights.

    Example:
      >>> from multiterm_optax import equal
      >>> weighting = equal()
      >>> weights, _ = weighting.update(None, weighting.init(4))
      >>> weights.tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    return _fixed(
        lambda num_terms: jnp.full((num_terms,), 1 / num_terms, jnp.result_type(float)),
        lambda present, fixed: _absent.equal_shares(present, fixed),
        "equal",
    )


def constant(weights: Any) -> Weighting:
    r"""Fixed weights :math:`w`, as given.

    Reads neither gradients nor losses.

    Args:
      weights: Non-negative weights of shape [K]. They are not normalised.

    Returns:
      A :class:`multiterm_optax.Weighting` whose state is the weights.

    Raises:
      ValueError: A weight is negative or not finite, or there are not K of them.

    Example:
      >>> from multiterm_optax import constant
      >>> weighting = constant([1.0, 0.5])
      >>> weights, _ = weighting.update(None, weighting.init(2))
      >>> weights.tolist()
      [1.0, 0.5]
    """
    try:
        shape = np.shape(weights)
    except ValueError:  # lists of unequal lengths
        shape = ()
    if len(shape) != 1:
        raise ValueError(
            "constant: weights must have shape [K], one number for each term, found "
            f"{_words.describe(weights)}."
        )
    values = _checks.vector(weights, "weights", "constant", shape[0])

    def make(num_terms: int) -> jax.Array:
        return _checks.vector(values, "weights", "constant", num_terms)

    return _fixed(make, _terms.only_present, "constant")


class FixedState(NamedTuple):
    """State of :func:`equal` and :func:`constant`: the weights [K]."""

    fixed: jax.Array


def _fixed(
    make: Callable[[int], jax.Array],
    among: Callable[[jax.Array, Weights], Any],
    name: str,
) -> Weighting:
    def update(
        gramian: Gramian | None,
        state: FixedState,
        *,
        losses: Losses | None = None,
        present: Bool[Array, " K"] | None = None,
        **extra_args: Any,
    ) -> tuple[Weights, FixedState]:
        del gramian, losses, extra_args
        present = _checks.present(present, name, state.fixed.size)
        if present is None:
            return state.fixed, state
        return among(present, state.fixed), state

    return Weighting(
        lambda num_terms: FixedState(make(num_terms)), update, reads_gramian=False
    )
