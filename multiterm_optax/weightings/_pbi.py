"""PBI: the distance along the ray of a preference, with a penalty for leaving it."""

from typing import Any

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _rays


def pbi(preference: Any = None, penalty: Scalar = 5.0, ideal: Any = None) -> Weighting:
    r"""Weights of the penalty-based boundary intersection.

    They are the gradient in the losses of :math:`d_1 + \theta d_2`, the distances along
    and from the ray in the direction :math:`e = p / \lVert p \rVert`:

    .. math::

      d_1 = e \cdot (L - z), \qquad d_2 = \lVert L - z - d_1 e \rVert .

    A large penalty leaves losses with :math:`L - z \propto p`: a *larger* :math:`p_i`
    leaves a larger loss. The weight of a loss below the ray is negative for most
    penalties. On the ray, where :math:`d_2` has a kink, :math:`w = e`.

    Args:
      preference: :math:`p`, K numbers, not negative, in any unit; if they are traced,
        one ``vmap`` can train a whole front. ``None``: equal.
      penalty: :math:`\theta`, not negative; the authors use 5.
      ideal: :math:`z`, the best losses to hope for, a number or [K]. ``None``: 0.

    Returns:
      A stateless :class:`multiterm_optax.Weighting` of the losses only; weights [K].

    Raises:
      ValueError: ``preference`` or ``penalty`` is negative, ``preference`` or ``ideal``
        does not have K values, or losses are missing.

    Source:
      Zhang and Li, "MOEA/D: A Multiobjective Evolutionary Algorithm Based on
      Decomposition", IEEE Transactions on Evolutionary Computation 11(6), 2007, II-C;
      with the sign of :math:`d_1`, as in LibMOON (Zhang et al., 2024).

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import pbi
      >>> weighting = pbi(preference=[3.0, 4.0], penalty=1.0)
      >>> state, losses = weighting.init(2), jnp.array([2.0, 0.0])
      >>> weights, _ = weighting.update(None, state, losses=losses)
      >>> [round(float(w), 4) for w in weights]
      [1.4, 0.2]
    """
    name = "pbi"
    preferred = _checks.preference(preference, name)
    _checks.non_negative(penalty, "penalty", name)
    finite = {"open_low": True, "open_high": True}
    if ideal is not None:
        _checks.in_range(ideal, "ideal", name, **finite, array=True)

    def init(num_terms: int) -> optax.EmptyState:
        preferred(num_terms)
        if ideal is not None:
            _checks.number_or_vector(ideal, "ideal", name, num_terms)
        return optax.EmptyState()

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        dtype = problem.losses.dtype
        shares = preferred(problem.num_terms, jnp.ones_like(problem.losses))
        shares = problem.only_present(shares)
        origin = _checks.number_or_vector(
            0.0 if ideal is None else ideal, "ideal", name, problem.num_terms, dtype
        )
        losses = problem.only_present(problem.losses - origin)
        ray, _ = _rays.unit(shares)
        away, _ = _rays.unit(_rays.across(losses, shares))
        return ray + jnp.asarray(penalty, dtype) * away, state

    return _weighting.method(name, init, find, reads_losses=True)
