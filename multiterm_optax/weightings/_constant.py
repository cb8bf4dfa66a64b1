"""Weights that never change, the baseline of every other method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from multiterm_optax import _checks, _weighting, _words
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting


class FixedState(NamedTuple):
    """State of :func:`equal` and :func:`constant`: the weights [K]."""

    fixed: jax.Array


def equal() -> Weighting:
    r"""Equal weights, :math:`w_i = 1 / K`: the mean of the present losses.

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

    def find(problem: Problem, state: FixedState) -> tuple[Weights, FixedState]:
        if problem.present is None:
            return state.fixed, state
        return problem.equal_shares(state.fixed.dtype), state

    return _fixed("equal", lambda num_terms: np.full(num_terms, 1 / num_terms), find)


def constant(weights: Any) -> Weighting:
    r"""Fixed weights :math:`w`, as given.

    Reads neither gradients nor losses.

    Args:
      weights: Non-negative weights of shape [K]. They are not normalised.

    Returns:
      A :class:`multiterm_optax.Weighting` whose state is the weights.

    Raises:
      ValueError: A weight is negative or not finite, or their number is not K.

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

    def find(problem: Problem, state: FixedState) -> tuple[Weights, FixedState]:
        del problem
        return state.fixed, state

    return _fixed("constant", make, find)


def _fixed(
    name: str,
    make: Callable[[int], Any],
    find: Callable[[Problem, FixedState], tuple[Weights, FixedState]],
) -> Weighting:
    def init(num_terms: int) -> FixedState:
        return FixedState(jnp.asarray(make(num_terms), jnp.result_type(float)))

    return _weighting.method(name, init, find, by_term=("fixed",))
