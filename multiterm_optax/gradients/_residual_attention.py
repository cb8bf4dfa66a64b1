"""Residual attention: a weight for each point, inside the function of the losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks
from multiterm_optax._typing import Scalar


class ResidualAttentionState(NamedTuple):
    """State of :func:`residual_attention`.

    Attributes:
      weights: The points' weights [N], zeros before the first step.
    """

    weights: jax.Array


class ResidualAttention(NamedTuple):
    """The pair of functions that :func:`residual_attention` returns.

    Attributes:
      init: ``init(num_points) -> state``.
      update: ``update(residuals, state) -> (weights, state)``.
    """

    init: Callable[[int], ResidualAttentionState]
    update: Callable[
        [jax.Array, ResidualAttentionState], tuple[jax.Array, ResidualAttentionState]
    ]


def residual_attention(gamma: Scalar = 0.999, eta: Scalar = 0.01) -> ResidualAttention:
    r"""Weights for single points that follow their residuals (RBA).

    .. math::

      \lambda_b \leftarrow \gamma \lambda_b
      + \eta \, \frac{\lvert r_b \rvert}{\max_c \lvert r_c \rvert}, \qquad
      L = \frac1N \sum_b (\lambda_b r_b)^2 .

    Starting from 0, a weight stays below :math:`\eta / (1 - \gamma)`, 10 by default.

    Args:
      gamma: :math:`\gamma`, the decay rate, in [0, 1].
      eta: :math:`\eta`, how much the largest residual's weight gains in a step.

    Returns:
      A pair of functions, as in an Optax transformation. ``init(num_points)`` makes the
      state; ``update(residuals, state)`` takes one term's residuals [N] and returns
      this step's weights [N], constant to any derivative, and the next state. It
      belongs in the function of the losses, whose aux returns the state. A residual
      that is not finite counts as zero.

    Raises:
      ValueError: A hyperparameter is out of range, or there are not N residuals.

    Source:
      Anagnostopoulos, Toscano, Stergiopulos and Karniadakis, "Residual-based Attention
      in Physics-informed Neural Networks", CMAME 2024.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import residual_attention
      >>> attention = residual_attention()
      >>> residuals = jnp.array([0.5, -2.0, 0.0])
      >>> weights, state = attention.update(residuals, attention.init(3))
      >>> [round(float(w), 6) for w in weights]
      [0.0025, 0.01, 0.0]
    """
    name = "residual_attention"
    _checks.in_range(gamma, "gamma", name, low=0.0, high=1.0)
    _checks.non_negative(eta, "eta", name)

    def init(num_points: int) -> ResidualAttentionState:
        num_points = _checks.static_int(num_points, "num_points", name, low=1)
        return ResidualAttentionState(jnp.zeros((num_points,), jnp.result_type(float)))

    def update(
        residuals: jax.Array, state: ResidualAttentionState
    ) -> tuple[jax.Array, ResidualAttentionState]:
        old = state.weights
        _checks.floating(residuals, "residuals", name)
        if jnp.shape(residuals) != old.shape:
            raise ValueError(
                f"{name}: residuals must have shape {old.shape}, one for each of "
                f"num_points={old.size} points, found shape {jnp.shape(residuals)}."
            )
        sizes = jnp.abs(jax.lax.stop_gradient(residuals)).astype(old.dtype)
        sizes = jnp.where(jnp.isfinite(sizes), sizes, 0)
        largest = jnp.max(sizes)
        shares = sizes / jnp.where(largest > 0, largest, 1)
        weights = (gamma * old + eta * shares).astype(old.dtype)
        weights = jax.lax.stop_gradient(weights)
        return weights, ResidualAttentionState(weights)

    return ResidualAttention(init, update)
