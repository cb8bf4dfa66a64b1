"""IMTL-L: each term's scale, learned from its loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _learned


class IMTLLState(NamedTuple):
    """State of :func:`imtl_l`.

    Attributes:
      log_scale: :math:`s` [K] for the next step.
      learning: State of the transformation that learns it.
    """

    log_scale: jax.Array
    learning: optax.OptState


def imtl_l(learning: optax.GradientTransformation) -> Weighting:
    r"""Impartial loss balancing: learns a scale for each term.

    Minimises, over the :math:`s_i` as well as over the parameters,

    .. math:: \sum_i e^{s_i} L_i - s_i, \qquad w_i = e^{s_i}.

    The optimum is at :math:`w_i L_i = 1`: every scaled loss has the same size. The
    :math:`s_i` start at 0; each step uses those that the previous step has learned.

    Args:
      learning: The Optax transformation that learns :math:`s`, with its learning rate,
        such as ``optax.adam(1e-3)``.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only. The weights [K]
      are not normalised: they grow as the losses fall. A loss of zero or less has no
      optimum and does not change its :math:`s_i`, nor does one that is not finite.

    Raises:
      TypeError: ``learning`` is not a transformation.
      ValueError: Losses are missing.

    Source:
      Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021: its loss balance,
      IMTL-L.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import imtl_l
      >>> weighting = imtl_l(optax.adam(0.1))
      >>> state = weighting.init(2)
      >>> for _ in range(300):
      ...     weights, state = weighting.update(
      ...         None, state, losses=jnp.array([0.5, 4.0])
      ...     )
      >>> [round(float(w), 3) for w in weights]  # 1 / L
      [2.0, 0.25]
    """
    name = "imtl_l"
    _checks.transformation(learning, "learning", name)

    def init(num_terms: int) -> IMTLLState:
        dtype = jnp.result_type(float)
        return IMTLLState(
            log_scale=jnp.zeros((num_terms,), dtype),
            learning=learning.init(jnp.zeros((num_terms,), dtype)),
        )

    def find(problem: Problem, state: IMTLLState) -> tuple[Weights, IMTLLState]:
        now = state.log_scale
        weights = jnp.exp(now)
        counted = (problem.losses > 0) & jnp.isfinite(problem.losses)
        gradient = weights * jnp.where(counted, problem.losses, 0) - 1
        gradient = jnp.where(counted, gradient, 0)
        later, learned = _learned.step(problem, learning, gradient, state.learning, now)
        return weights, IMTLLState(later, learned)

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=("log_scale",)
    )
