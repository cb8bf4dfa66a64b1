# Longer than most: the levels are given by name or in the order of the terms.
"""Constrained training: Lagrange multipliers, learned by gradient ascent."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _named, _weighting, _words
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


class LagrangianState(NamedTuple):
    r"""State of :func:`lagrangian`.

    Attributes:
      multipliers: :math:`\lambda` [K] for the next step; that of the objective is 1.
      errors: Moving averages :math:`\xi` of the violations [K]; 0 for the objective.
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
    r"""Minimises one term subject to :math:`L_k \le c_k` for all others.

    With the violations :math:`e_k = L_k - c_k`, of either sign, the weights are

    .. math:: w_0 = 1, \qquad w_k = \lambda_k + \rho \max(0, e_k),

    with the multipliers from the last step; they ascend, from 0, by

    .. math::

      \xi_k \leftarrow \nu \xi_k + (1 - \nu) e_k, \qquad \lambda_k \leftarrow
      \max(0, \lambda_k + \eta (e_k + \kappa_P \, \Delta \xi_k)) .

    Args:
      targets: The levels :math:`c_k`, of either sign, by the names of the losses; the
        one that is not named is minimised. Alternatively an array, in the order of the
        terms, whose first term is minimised: K - 1 levels, or K of which the first is
        not read.
      learning_rate: :math:`\eta`.
      kp: :math:`\kappa_P`, not negative: the proportional part, which damps.
      nu: :math:`\nu`, in [0, 1): the decay rate of the violations' average.
      rho: :math:`\rho`, not negative, of the augmented Lagrangian. With 0 it is the
        plain one.

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
    levels = targets
    if not isinstance(targets, Mapping):
        levels = _as_array(targets, name)

    def read(num_terms: int) -> tuple[jax.Array, int]:
        """All levels [K], 0 for the objective, and which term that is."""
        if isinstance(levels, Mapping):
            chosen, objective = _by_name(levels, num_terms, name)
        elif levels.shape in ((num_terms - 1,), (num_terms,)):
            chosen, objective = levels[levels.size - num_terms + 1 :], 0
        else:
            raise ValueError(
                f"{name}: targets must have shape ({num_terms - 1},), one level for "
                f"each of num_terms={num_terms} terms but the first, or "
                f"({num_terms},), found shape {levels.shape}."
            )
        _checks.in_range(
            chosen, "targets", name, open_low=True, open_high=True, array=True
        )
        # Outside jit jnp.insert is some thirty operations.
        parts = chosen[:objective], jnp.zeros((1,), chosen.dtype), chosen[objective:]
        return jnp.concatenate(parts), objective

    def init(num_terms: int) -> LagrangianState:
        dtype = jnp.result_type(float)
        # Only the number of names can be checked here, since no loss has been seen.
        with _named.seen(_named.abstract(num_terms)):
            _, objective = read(num_terms)
        ones = jnp.arange(num_terms) == objective
        if isinstance(levels, Mapping):
            ones = jnp.zeros((num_terms,), bool)
        return LagrangianState(
            multipliers=ones.astype(dtype),
            errors=jnp.zeros((num_terms,), dtype),
        )

    def find(
        problem: Problem, state: LagrangianState
    ) -> tuple[Weights, LagrangianState]:
        bounds, objective = read(problem.num_terms)
        is_objective = jnp.arange(problem.num_terms) == objective
        counted = jnp.isfinite(problem.losses) & ~is_objective
        excess = problem.losses - bounds.astype(problem.losses.dtype)
        excess = jnp.where(counted, excess, 0)
        held = jnp.where(is_objective, 1, state.multipliers)
        held = held.astype(state.multipliers.dtype)
        state = state._replace(multipliers=held)
        weights = held + rho * jnp.maximum(excess, 0)
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


def _as_array(targets: Any, name: str) -> jax.Array:
    """Levels in the order of the terms."""
    try:
        return jnp.asarray(targets, jnp.result_type(float))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: targets must be K - 1 numbers, one for each term but the first, "
            f"or a dict of them by name, found {_words.describe(targets)}."
        ) from None


def _by_name(
    targets: Mapping[str, Any], num_terms: int, name: str
) -> tuple[jax.Array, int]:
    """The levels in the order of the terms, and the term that has none."""
    if len(targets) != num_terms - 1:
        raise ValueError(
            f"{name}: targets must name {num_terms - 1} of the num_terms={num_terms} "
            f"terms, all but the one to minimise, found {', '.join(map(str, targets))}."
        )
    terms = _named.current()
    if terms is not None and terms.abstract:
        return _as_array(list(targets.values()), name), 0
    if terms is None or terms.names is None:
        raise ValueError(
            f"{name}: targets by name need the names of the losses: pass losses=losses "
            "to update, structured as losses_fn returns them, found no names."
        )
    unknown = [key for key in targets if key not in terms.names]
    if unknown:
        raise ValueError(
            f"{name}: targets must be named as the losses are, {terms.order}, found "
            f"{unknown[0]!r}."
        )
    objective = next(i for i, key in enumerate(terms.names) if key not in targets)
    in_order = [targets[key] for key in terms.names if key in targets]
    return _as_array(in_order, name), objective
