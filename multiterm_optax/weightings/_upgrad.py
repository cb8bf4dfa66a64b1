"""UPGrad: every gradient projected so that it conflicts with no term, then combined."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Losses, Weights
from multiterm_optax._weighting import Weighting
from multiterm_optax.weightings import _dual_cone


class UPGradState(NamedTuple):
    """State of :func:`upgrad`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
    """

    converged: jax.Array


def upgrad(preference: Any = None) -> Weighting:
    r"""Unconflicting projection of gradients.

    Each gradient goes to the nearest direction that conflicts with no term, and the
    projections are combined:

    .. math::

      d = \sum_i u_i \, \pi(g_i), \qquad
      \pi(g) = \arg\min_{x} \lVert x - g \rVert^2
      \quad \text{with } g_j \cdot x \ge 0 \text{ for all } j .

    By duality :math:`\pi(g_i) = \sum_j v_j g_j` for the :math:`v` that minimises
    :math:`v^T G v` over :math:`v \ge e_i`: K programs on the gramian, solved together.
    The direction conflicts with no term, :math:`g_j \cdot d \ge 0`; where no two
    gradients conflict it is :math:`\sum_i u_i g_i`. Programs are in units of the
    gradients' lengths, so that terms of very different size do no harm and the weights
    are the same when all gradients are multiplied by a constant.

    Args:
      preference: :math:`u`, K weights, not negative. ``None``: 1 / K each, the mean,
        as in the paper; over the terms that are present where some are absent.

    Returns:
      A :class:`multiterm_optax.Weighting`; weights [K], not negative. It reads the
      gramian.

    Raises:
      ValueError: ``preference`` is negative or has not K values.

    Source:
      Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, Eq. 5
      and Proposition 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import upgrad
      >>> weighting = upgrad()
      >>> gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights]
      [1.0, 0.75]
      >>> [round(float(x), 6) for x in weights @ gradients]  # the mean is [0, 0.5]
      [0.25, 0.75]
    """
    name = "upgrad"
    if preference is not None:
        _checks.non_negative(preference, "preference", name, array=True)

    def init(num_terms: int) -> UPGradState:
        if preference is not None:
            _checks.vector(preference, "preference", name, num_terms)
        return UPGradState(converged=jnp.ones([], jnp.bool_))

    def update(
        gramian: Gramian,
        state: UPGradState,
        *,
        losses: Losses | None = None,
        present: Bool[Array, " K"] | None = None,
        **extra_args: Any,
    ) -> tuple[Weights, UPGradState]:
        del state, losses, extra_args
        present = _checks.present(present, name, gramian.shape[0])
        gramian = _weighting.pairs_present(present, gramian)
        shares = _dual_cone.shares(preference, gramian, present, name)
        weights, converged = _dual_cone.project(gramian, jnp.diag(shares))
        return jnp.sum(weights, axis=0), UPGradState(converged)

    return Weighting(init, update)
