"""FairGrad: alpha-fair shares of what a step brings to the terms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _fair


class FairGradState(NamedTuple):
    """State of :func:`fair_grad`.

    Attributes:
      converged: Whether the last step's weights solve the equations. They do not where
        a combination of the gradients with positive weights is zero.
    """

    converged: jax.Array


def fair_grad(alpha: Scalar = 1.0, preference: Any = None) -> Weighting:
    r"""The direction whose gains :math:`g_i \cdot d` are an :math:`\alpha`-fair choice.

    .. math::

      w > 0, \qquad g_i \cdot d = (G w)_i = \Bigl(\frac{p_i}{w_i}\Bigr)^{1/\alpha},
      \qquad d = \sum_i w_i g_i

    Up to its length, :math:`d` maximises
    :math:`\sum_i p_i (g_i \cdot d)^{1-\alpha} / (1-\alpha)`. Towards
    :math:`\alpha = 0` it is :math:`\sum_i p_i g_i`; 1 is :func:`nash_mtl`; 2 minimises
    the total delay; the larger :math:`\alpha`, the more the term that gains least
    counts. It conflicts with no term. With :math:`\alpha \ne 1` the terms' scales
    matter.

    What :func:`nash_mtl` says about zero gradients, one term, and gradients without a
    solution also holds here. A term of preference 0 is left out.

    Args:
      alpha: :math:`\alpha`, in (0, inf).
      preference: :math:`p`, K weights, not negative. ``None``: 1 each.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K],
        positive.

    Raises:
      ValueError: ``alpha`` is not positive, or ``preference`` is negative or does not
        have K values.

    Source:
      Ban and Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, the
      optimality condition of the alpha-fair objective; the preference is added here.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import fair_grad
      >>> weighting = fair_grad(alpha=2.0)
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 8.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights], bool(state.converged)
      ([1.0, 0.0625], True)
    """
    name = "fair_grad"
    _checks.in_range(alpha, "alpha", name, low=0.0, open_low=True, open_high=True)
    preferred = _checks.preference(preference, name)

    def init(num_terms: int) -> FairGradState:
        preferred(num_terms)
        return FairGradState(converged=jnp.ones([], jnp.bool_))

    def find(problem: Problem, state: FairGradState) -> tuple[Weights, FairGradState]:
        del state
        ones = jnp.ones_like(problem.squared_norms)
        shares = preferred(problem.num_terms, ones).astype(problem.gramian.dtype)
        weights, converged = _fair.find(problem, alpha, shares)
        return weights, FairGradState(converged)

    return _weighting.method(name, init, find, reads_gramian=True)
