"""COSMOS: a weighted sum of the losses that is drawn to the ray of the preference."""

from typing import Any

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _rays


def cosmos(preference: Any = None, penalty: Scalar = 1.0) -> Weighting:
    r"""Weights of a weighted sum minus a multiple of its cosine with the preference.

    The weights are the gradient with respect to the losses of

    .. math:: \sum_i p_i L_i - \lambda \cos(p, L) .

    The cosine draws the losses to the ray :math:`L \propto p`, on which a *larger*
    :math:`p_i` leaves a larger loss, although it weighs more in the sum. Weights are
    negative where a loss is far below the ray. Where all losses are zero the cosine is
    left out.

    Args:
      preference: :math:`p`, K numbers, not negative; if they are traced, one ``vmap``
        can train a whole front. ``None``: 1 / K each, with K the number of present
        terms.
      penalty: :math:`\lambda`, not negative, in the units of the losses. With 0 it is
        the weighted sum. The paper chooses it for each data set.

    Returns:
      A stateless :class:`multiterm_optax.Weighting` of the losses only; weights [K].

    Raises:
      ValueError: An argument is negative, ``preference`` does not have K values, or
        losses are missing.

    Source:
      Ruchte and Grabocka, "Scalable Pareto Front Approximation for Deep Multi-Objective
      Learning", ICDM 2021: the objective, here for one network per preference.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import cosmos
      >>> weighting = cosmos(preference=[0.5, 0.5], penalty=1.0)
      >>> state, losses = weighting.init(2), jnp.array([1.0, 0.0])
      >>> weights, _ = weighting.update(None, state, losses=losses)
      >>> [round(float(w), 4) for w in weights]
      [0.5, -0.2071]
    """
    name = "cosmos"
    preferred = _checks.preference(preference, name)
    _checks.non_negative(penalty, "penalty", name)

    def init(num_terms: int) -> optax.EmptyState:
        preferred(num_terms)
        return optax.EmptyState()

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        dtype = problem.losses.dtype
        shares = preferred(problem.num_terms, problem.equal_shares(dtype))
        shares = problem.only_present(shares)
        _, length = _rays.unit(problem.losses)
        slope = _rays.across(shares, problem.losses)
        slope = jnp.where(length > 0, slope / jnp.where(length > 0, length, 1), 0)
        return shares - jnp.asarray(penalty, dtype) * slope, state

    return _weighting.method(name, init, find, reads_losses=True)
