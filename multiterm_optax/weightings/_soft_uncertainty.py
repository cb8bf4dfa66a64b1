"""Soft uncertainty weighting: a softmax of the inverse losses."""

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


def soft_uncertainty(temperature: Scalar) -> Weighting:
    r"""Soft optimal uncertainty weighting: a softmax of the inverse losses.

    .. math:: w_i = \frac{e^{1 / T L_i}}{\sum_j e^{1 / T L_j}}

    Where the uncertainties of :func:`multiterm_optax.uncertainty` are not learned but
    set to their optimum, the weights are in proportion to :math:`1 / L_i`; the softmax
    tempers them. The lower a loss, the more weight it has.

    Args:
      temperature: T, positive. The larger, the more equal the weights. It has the unit
        of an inverse loss and has to be tuned: there is no default.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; the weights [K]
      sum to 1, with no state. A negative loss counts by its magnitude. Losses of zero
      share all the weight. A loss that is NaN makes the weights NaN.

    Raises:
      ValueError: ``temperature`` is not positive, or losses are missing.

    Source:
      Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task
      Learning", GCPR 2024: UW-SO.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import soft_uncertainty
      >>> weighting = soft_uncertainty(temperature=2.0)
      >>> losses = jnp.array([1.0, 0.5])
      >>> weights, _ = weighting.update(None, weighting.init(2), losses=losses)
      >>> [round(float(w), 3) for w in weights]  # softmax(1/2, 1)
      [0.378, 0.622]
    """
    name = "soft_uncertainty"
    _checks.in_range(temperature, "temperature", name, low=0.0, open_low=True)

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        sizes = jnp.abs(problem.losses)
        inverse = jnp.where(sizes == 0, jnp.inf, 1 / jnp.where(sizes == 0, 1, sizes))
        # For losses near each other, the inverses may be large and their difference
        # small, so it is taken before the temperature can overflow either.
        inverse = _losses.bounded(inverse)
        scores = (inverse - problem.largest(inverse)) / temperature
        return _losses.softmax(problem, scores).astype(sizes.dtype), state

    return _weighting.method(name, _weighting.stateless, find, reads_losses=True)
