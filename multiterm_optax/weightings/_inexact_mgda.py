"""Inexact MGDA: skips the steps that errors of the gradients could reverse."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _min_norm
from multiterm_optax.weightings._min_norm import Normalization


class InexactMGDAState(NamedTuple):
    """State of :func:`inexact_mgda`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
      ready: Whether the last step was to be taken.
      skipped: Number of steps skipped so far, int32.
    """

    converged: jax.Array
    ready: jax.Array
    skipped: jax.Array


def inexact_mgda(eps: Any, normalization: Normalization | None = None) -> Weighting:
    r"""MGDA that skips the steps it cannot trust.

    With the direction :math:`d` of :func:`mgda` and a bound :math:`\epsilon_i` on the
    error of each term's gradient, the step is taken only if, for every term,

    .. math:: g_i \cdot d \ge \epsilon_i \lVert d \rVert ,

    that is, if it descends for every gradient within the bounds, up to the rounding of
    the products. Training stops by itself once :math:`\lVert d \rVert` falls below the
    bounds of the terms that have a weight.

    All weights of a skipped step are zero. Inside :func:`multiterm_optax.weighted` it
    changes neither the parameters nor the inner optimizer's state; after a plain
    :func:`multiterm_optax.reweight` a later optimizer sees zero gradients. A step from
    which all terms are absent is skipped.

    Args:
      eps: :math:`\epsilon`, not negative: one number, or K in an array or a pytree.
      normalization: As in :func:`mgda`. The test uses the gradients as they are.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K]. Its
      state says whether it is ``ready`` and counts ``skipped`` steps.

    Raises:
      ValueError: ``eps`` is negative or does not have K values.

    Source:
      Aygar, "Pareto-Efficient Training of Multi-Task Deep Networks", thesis, 2019, 2.2,
      Eq. 2.9 to 2.11, after Peitz and Dellnitz, 2018.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import inexact_mgda
      >>> weighting = inexact_mgda(eps=1.0)
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # d = [0.5, 0.5]
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> bool(state.ready), int(state.skipped), weights.tolist()
      (False, 1, [0.0, 0.0])
    """
    name = "inexact_mgda"
    _checks.non_negative(eps, "eps", name, array=True)
    _min_norm.check(normalization, name)

    def init(num_terms: int) -> InexactMGDAState:
        _checks.number_or_vector(eps, "eps", name, num_terms)
        return InexactMGDAState(
            converged=jnp.ones([], jnp.bool_),
            ready=jnp.ones([], jnp.bool_),
            skipped=jnp.zeros([], jnp.int32),
        )

    def find(
        problem: Problem, state: InexactMGDAState
    ) -> tuple[Weights, InexactMGDAState]:
        gramian = problem.gramian
        weights, converged = _min_norm.find(problem, normalization)
        weights = problem.only_present(weights)
        bounds = _checks.number_or_vector(eps, "eps", name, problem.num_terms)
        along = jnp.matmul(gramian, weights, precision="highest")
        length = jnp.sqrt(jnp.maximum(weights @ along, 0))
        # A product that is zero up to rounding does not conflict.
        norms = jnp.sqrt(problem.squared_norms)
        resolution = problem.num_present * jnp.finfo(gramian.dtype).eps
        rounding = resolution * norms * (weights @ norms)
        descends = along + rounding >= bounds * length
        if problem.present is not None:
            descends = descends | ~problem.present
        ready = jnp.all(descends) & problem.any_present
        skipped = state.skipped + jnp.where(ready, 0, 1).astype(jnp.int32)
        weights = jnp.where(ready, weights, 0)
        return weights, InexactMGDAState(converged, ready, skipped)

    by_loss = normalization in _min_norm.BY_LOSS
    return _weighting.method(name, init, find, reads_gramian=True, reads_losses=by_loss)
