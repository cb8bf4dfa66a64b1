"""Weights that never change, the baseline for every other method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from multiterm_optax import _checks, _named, _weighting, _words
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting


class FixedState(NamedTuple):
    """State of :func:`equal` and :func:`constant`: the weights [K]."""

    fixed: jax.Array


def equal() -> Weighting:
    r"""Equal weights, :math:`w_i = 1 / K`: the mean of the present losses.

    It reads neither gradients nor losses.

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

    It reads neither gradients nor losses.

    Args:
      weights: K weights, not negative: an array [K], or a pytree like the losses, such
        as a dict by their names. They are not normalised.

    Returns:
      A :class:`multiterm_optax.Weighting` whose state is the weights.

    Raises:
      ValueError: A weight is negative or not finite, their number is not K, or their
        structure is not that of the losses.

    Example:
      >>> from multiterm_optax import constant
      >>> weighting = constant({"policy": 1.0, "entropy": 0.01})
      >>> weights, _ = weighting.update(None, weighting.init(2))
      >>> [round(float(w), 2) for w in weights]  # in the order of the dict's leaves
      [0.01, 1.0]
    """
    name = "constant"
    values = _named.by_name(weights, "weights", name)
    try:
        shape = np.shape(values)
    except ValueError:  # lists of unequal lengths
        shape = ()
    except TypeError:  # traced numbers
        shape = (len(values),)
    if len(shape) != 1:
        raise ValueError(
            "constant: weights must have shape [K], one number for each term, found "
            f"{_words.describe(weights)}."
        )
    _checks.vector(weights, "weights", name, shape[0])

    def make(num_terms: int) -> jax.Array:
        return _checks.vector(weights, "weights", name, num_terms)

    def find(problem: Problem, state: FixedState) -> tuple[Weights, FixedState]:
        del problem
        _named.by_name(weights, "weights", name)
        return state.fixed, state

    return _fixed(name, make, find)


def _fixed(
    name: str,
    make: Callable[[int], Any],
    find: Callable[[Problem, FixedState], tuple[Weights, FixedState]],
) -> Weighting:
    def init(num_terms: int) -> FixedState:
        return FixedState(jnp.asarray(make(num_terms), jnp.result_type(float)))

    return _weighting.method(name, init, find, by_term=("fixed",))
