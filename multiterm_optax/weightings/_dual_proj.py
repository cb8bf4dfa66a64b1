"""DualProj: the combined gradient projected so that it conflicts with no term."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Losses, Weights
from multiterm_optax._weighting import Weighting
from multiterm_optax.weightings import _dual_cone


class DualProjState(NamedTuple):
    """State of :func:`dual_proj`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
    """

    converged: jax.Array


def dual_proj(preference: Any = None) -> Weighting:
    r"""The direction nearest to the weighted gradient that conflicts with no term.

    .. math::

      d = \arg\min_{x} \Bigl\lVert x - \sum_i u_i g_i \Bigr\rVert^2
      \quad \text{with } g_j \cdot x \ge 0 \text{ for all } j .

    By duality :math:`d = \sum_j v_j g_j` for the :math:`v` that minimises
    :math:`v^T G v` over :math:`v \ge u`: one program on the gramian, where
    :func:`multiterm_optax.upgrad` solves K. Where the weighted gradient conflicts with
    no term it passes as it is.

    Args:
      preference: :math:`u`, K weights, not negative. ``None``: 1 / K each, over the
        terms that are present where some are absent.

    Returns:
      A :class:`multiterm_optax.Weighting`; weights [K], not negative. It reads the
      gramian.

    Raises:
      ValueError: ``preference`` is negative or has not K values.

    Source:
      Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS
      2017, Eq. 11, for the last task; with all gradients in the combination as in
      Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import dual_proj
      >>> weighting = dual_proj()
      >>> gradients = jnp.array([[1.0, 0.0], [-3.0, 1.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights]
      [1.5, 0.5]
      >>> [round(float(x), 6) for x in weights @ gradients]  # the mean is [-1, 0.5]
      [0.0, 0.5]
    """
    name = "dual_proj"
    if preference is not None:
        _checks.non_negative(preference, "preference", name, array=True)

    def init(num_terms: int) -> DualProjState:
        if preference is not None:
            _checks.vector(preference, "preference", name, num_terms)
        return DualProjState(converged=jnp.ones([], jnp.bool_))

    def update(
        gramian: Gramian,
        state: DualProjState,
        *,
        losses: Losses | None = None,
        present: Bool[Array, " K"] | None = None,
        **extra_args: Any,
    ) -> tuple[Weights, DualProjState]:
        del state, losses, extra_args
        present = _checks.present(present, name, gramian.shape[0])
        gramian = _weighting.pairs_present(present, gramian)
        shares = _dual_cone.shares(preference, gramian, present, name)
        weights, converged = _dual_cone.project(gramian, shares[None])
        return weights[0], DualProjState(converged)

    return Weighting(init, update)
