"""Constrained training: Lagrange multipliers, learned by gradient ascent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting, _words
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


class LagrangianState(NamedTuple):
    r"""State of :func:`lagrangian`.

    Attributes:
      multipliers: :math:`\lambda` [K] for the next step; that of term 0 is 1.
      errors: Moving averages :math:`\xi` of the violations [K]; 0 for term 0.
    """

    multipliers: jax.Array
    errors: jax.Array


def lagrangian(
    targets: Any,
    learning_rate: Scalar,
    kp: Scalar = 0.0,
    *,
    nu: Scalar = 0.0,
    rho: Scalar = 0.0,
) -> Weighting:
    r"""Minimises term 0 subject to :math:`L_k \le c_k` for all others.

    With the violations :math:`e_k = L_k - c_k`, of either sign, the weights are

    .. math:: w_0 = 1, \qquad w_k = \lambda_k + \rho \max(0, e_k),

    with the multipliers that the last step has left; they ascend, from 0, by

    .. math::

      \xi_k \leftarrow \nu \xi_k + (1 - \nu) e_k, \qquad \lambda_k \leftarrow
      \max(0, \lambda_k + \eta (e_k + \kappa_P \, \Delta \xi_k)) .

    Args:
      targets: The levels :math:`c_1, \dots, c_{K-1}`, in the order of the terms: K - 1
        numbers, of either sign. Or K, like the losses, of which the first is not read.
      learning_rate: :math:`\eta`.
      kp: :math:`\kappa_P`, not negative: the proportional part, which damps.
      nu: :math:`\nu`, in [0, 1): the decay rate of the violations' average.
      rho: :math:`\rho`, not negative: the augmented Lagrangian's. 0: the plain one.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; weights [K]. A
      loss that is not finite leaves its multiplier as it was.

    Raises:
      ValueError: A hyperparameter is out of range, or losses are missing.

    Source:
      Sohrabi et al., "On PI Controllers for Updating Lagrange Multipliers", ICML 2024.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import lagrangian
      >>> weighting = lagrangian([0.5], learning_rate=0.1)
      >>> losses = jnp.array([3.0, 1.5])  # the constraint is violated by 1
      >>> _, state = weighting.update(None, weighting.init(2), losses=losses)
      >>> [round(float(m), 3) for m in state.multipliers]
      [1.0, 0.1]
    """
    name = "lagrangian"
    _checks.in_range(
        learning_rate, "learning_rate", name, open_low=True, open_high=True
    )
    _checks.non_negative(kp, "kp", name)
    _checks.decay(nu, "nu", name)
    _checks.non_negative(rho, "rho", name)
    try:
        levels = jnp.asarray(targets, jnp.result_type(float))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: targets must be K - 1 numbers, one for each term but the first, "
            f"found {_words.describe(targets)}."
        ) from None

    def all_levels(num_terms: int) -> jax.Array:
        if levels.shape not in ((num_terms - 1,), (num_terms,)):
            raise ValueError(
                f"{name}: targets must have shape ({num_terms - 1},), one level for "
                f"each of num_terms={num_terms} terms but the first, or "
                f"({num_terms},), found shape {levels.shape}."
            )
        chosen = levels[levels.size - num_terms + 1 :]
        _checks.in_range(
            chosen, "targets", name, open_low=True, open_high=True, array=True
        )
        return jnp.concatenate([jnp.zeros((1,), chosen.dtype), chosen])

    def init(num_terms: int) -> LagrangianState:
        dtype = jnp.result_type(float)
        all_levels(num_terms)
        return LagrangianState(
            multipliers=jnp.zeros((num_terms,), dtype).at[0].set(1),
            errors=jnp.zeros((num_terms,), dtype),
        )

    def find(
        problem: Problem, state: LagrangianState
    ) -> tuple[Weights, LagrangianState]:
        counted = jnp.isfinite(problem.losses).at[0].set(False)
        excess = problem.losses - all_levels(problem.num_terms).astype(
            problem.losses.dtype
        )
        excess = jnp.where(counted, excess, 0)
        weights = state.multipliers + rho * jnp.maximum(excess, 0)
        errors = nu * state.errors + (1 - nu) * excess
        change = excess + kp * (errors - state.errors)
        moved = jnp.maximum(state.multipliers + learning_rate * change, 0)
        later = LagrangianState(_losses.bounded(moved), errors)
        later = jax.tree.map(
            lambda new, old: jnp.where(counted, new, old).astype(old.dtype),
            later,
            state,
        )
        return _losses.bounded(weights).astype(state.errors.dtype), later

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=LagrangianState._fields
    )
