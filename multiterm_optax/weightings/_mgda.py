"""MGDA: the shortest vector in the convex hull of the gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _min_norm
from multiterm_optax.weightings._min_norm import Normalization


class MGDAState(NamedTuple):
    """State of :func:`mgda`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
    """

    converged: jax.Array


def mgda(normalization: Normalization | None = None) -> Weighting:
    r"""Multiple-gradient descent: weights of the min-norm point.

    .. math::

      w = \arg\min_{\alpha \ge 0, \, \sum_i \alpha_i = 1}
        \Bigl\lVert \sum_i \alpha_i g_i \Bigr\rVert^2
        = \arg\min \alpha^T G \alpha

    The direction :math:`d = \sum_i w_i g_i` conflicts with no term,
    :math:`g_i \cdot d \ge \lVert d \rVert^2`, and is zero where the parameters are
    Pareto stationary, or where a term's gradient is zero. The direction is unique, but
    the weights need not be.

    Args:
      normalization: Finds the weights for scaled gradients instead: ``"l2"``
        :math:`g_i / \lVert g_i \rVert`, ``"loss"`` :math:`g_i / L_i`, ``"loss+"``
        :math:`g_i / (L_i \lVert g_i \rVert)`. They then multiply the gradients as they
        are, so :math:`d` may conflict. Losses count by magnitude, and zero as 1.

    Returns:
      A :class:`multiterm_optax.Weighting`; the weights [K] sum to 1. It reads the
      gramian, and with ``"loss"`` and ``"loss+"`` the losses.

    Raises:
      ValueError: ``normalization`` is not one of the choices, or losses are missing.

    Source:
      Desideri, "Multiple-gradient descent algorithm (MGDA) for multiobjective
      optimization", 2012; Sener and Koltun, "Multi-Task Learning as Multi-Objective
      Optimization", 2018, Eq. 3; normalisations of their code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mgda
      >>> weighting = mgda()
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights], bool(state.converged)
      ([0.8, 0.2], True)
    """
    name = "mgda"
    _min_norm.check(normalization, name)

    def init(num_terms: int) -> MGDAState:
        del num_terms
        return MGDAState(converged=jnp.ones([], jnp.bool_))

    def find(problem: Problem, state: MGDAState) -> tuple[Weights, MGDAState]:
        del state
        weights, converged = _min_norm.find(problem, normalization)
        return weights, MGDAState(converged)

    by_loss = normalization in _min_norm.BY_LOSS
    return _weighting.method(name, init, find, reads_gramian=True, reads_losses=by_loss)
