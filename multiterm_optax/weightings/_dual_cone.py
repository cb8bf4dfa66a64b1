# Longer than most: two methods that share one projection.
"""Projection onto the dual cone: the nearest direction that conflicts with no term.

UPGrad projects every gradient and combines the projections; DualProj combines the
gradients and projects the result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multiterm_optax import _checks, _nnqp, _weighting
from multiterm_optax._typing import Gramian, Mixing, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _units


class DualConeState(NamedTuple):
    """State of :func:`upgrad` and :func:`dual_proj`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
      conflicts: The share of the pairs of terms whose gradients had a negative dot
        product in the last step.
    """

    converged: jax.Array
    conflicts: jax.Array


def upgrad(preference: Any = None, *, rows: bool = False) -> Weighting:
    r"""Unconflicting projection of gradients.

    Each gradient is projected to the nearest direction that conflicts with no term, and
    the projections are combined:

    .. math::

      d = \sum_i u_i \, \pi(g_i), \qquad
      \pi(g) = \arg\min_{x} \lVert x - g \rVert^2
      \qquad \text{with } g_j \cdot x \ge 0 \text{ for all } j .

    The direction conflicts with no term, :math:`g_j \cdot d \ge 0`. If no two gradients
    conflict, it is :math:`\sum_i u_i g_i`.

    With ``rows`` the projections stay separate, for a later stage that has a state for
    each term. With two terms this is :func:`multiterm_optax.pcgrad`.

    Args:
      preference: :math:`u`, K weights, not negative. ``None``: 1 / K each, the mean,
        as in the paper, where K is the number of present terms; with ``rows`` 1 each.
      rows: Return the matrix whose row :math:`i` gives :math:`u_i \, \pi(g_i)`.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K], not
      negative, or with ``rows`` a mixing matrix [K, K] with no negative entry.

    Raises:
      ValueError: ``preference`` is negative or does not have K values, or ``rows`` is
        not a boolean.

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
      >>> mixing, _ = upgrad(rows=True).update(gradients @ gradients.T, state)
      >>> (mixing @ gradients).round(6).tolist()
      [[0.5, 0.5], [0.0, 1.0]]
    """
    name = "upgrad"
    _checks.one_of(rows, "rows", name, (False, True))
    # K combinations, each of one gradient only.
    return _projected(preference, jnp.diag, name, rows)


def dual_proj(preference: Any = None) -> Weighting:
    r"""The direction without conflicts that is nearest to the weighted gradient.

    .. math::

      d = \arg\min_{x} \Bigl\lVert x - \sum_i u_i g_i \Bigr\rVert^2
      \qquad \text{with } g_j \cdot x \ge 0 \text{ for all } j .

    A weighted gradient that conflicts with no term is left as it is. One quadratic
    program is solved, whereas :func:`multiterm_optax.upgrad` solves K.

    Args:
      preference: :math:`u`, K weights, not negative. ``None``: 1 / K each, where K is
        the number of present terms.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K], not
      negative.

    Raises:
      ValueError: ``preference`` is negative or does not have K values.

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
    return _projected(preference, lambda shares: shares[None], "dual_proj")


def _projected(
    preference: Any,
    combinations: Callable[[Weights], Float[Array, "N K"]],
    name: str,
    rows: bool = False,
) -> Weighting:
    """Weights of the projections of ``combinations(shares)``, or of their sum."""
    preferred = _checks.preference(preference, name)

    def init(num_terms: int) -> DualConeState:
        preferred(num_terms)
        return DualConeState(
            converged=jnp.ones([], jnp.bool_),
            conflicts=jnp.zeros([], jnp.result_type(float)),
        )

    def find(
        problem: Problem, state: DualConeState
    ) -> tuple[Weights | Mixing, DualConeState]:
        del state
        gramian = problem.gramian
        equal = problem.equal_shares(gramian.dtype)
        shares = preferred(problem.num_terms, jnp.ones_like(equal) if rows else equal)
        shares = problem.only_present(shares)
        weights, converged = _project(gramian, combinations(shares))
        found = DualConeState(converged, _conflicts(problem))
        return weights if rows else jnp.sum(weights, axis=0), found

    return _weighting.method(name, init, find, reads_gramian=True)


def _conflicts(problem: Problem) -> Float[Array, ""]:
    """The share of the pairs of present terms whose dot product is negative."""
    dtype = jnp.result_type(float)
    num_present = jnp.asarray(problem.num_present, dtype)
    negative = jnp.sum(jnp.triu(problem.gramian < 0, 1), dtype=dtype)
    return negative / jnp.maximum(num_present * (num_present - 1) / 2, 1)


def _project(
    gramian: Gramian, coefficients: Float[Array, "N K"]
) -> tuple[Float[Array, "N K"], Bool[Array, ""]]:
    r"""Coefficients of the projections of N combinations of the gradients.

    With :math:`d = \sum_j u_j g_j`, u not negative, the projection is
    :math:`\sum_j v_j g_j` for the v that minimises :math:`v^T G v` over
    :math:`v \ge u`: coefficients can only grow.
    """
    gramian = jax.lax.stop_gradient(gramian)
    scaled, units, silent = _units.split(gramian)
    # In units of each gradient's length, and of each combination's largest part.
    parts = coefficients.astype(gramian.dtype) * units[None, :]
    largest = jnp.max(parts, axis=1, keepdims=True)
    parts = parts / jnp.where(largest > 0, largest, 1)
    towards = -jnp.matmul(parts, scaled, precision="highest")
    # Where gradients cancel, only rounding errors remain, which must not count.
    rounding = jnp.matmul(jnp.abs(parts), jnp.abs(scaled), precision="highest")
    rounding = rounding * (len(units) * jnp.finfo(scaled.dtype).eps)
    towards = jnp.where(jnp.abs(towards) <= rounding, 0, towards)
    found = _nnqp.solve_each(scaled, towards)
    gained = jnp.where(silent[None, :], 0, found.z)
    return (parts + gained) * largest / units[None, :], jnp.all(found.converged)
