"""IMTL-G: a direction with equal projections on the unit gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _linear, _weighting
from multiterm_optax._typing import Gramian, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _units


class IMTLGState(NamedTuple):
    """State of :func:`imtl_g`.

    Attributes:
      stationary: Whether zero was the only direction with equal projections in the last
        step: the weights sum to 1, and the gradients cancel.
      turned: Whether the sign of the last direction was changed, because it pointed
        against the terms: the weights sum to -1.
    """

    stationary: jax.Array
    turned: jax.Array


def imtl_g() -> Weighting:
    r"""Impartial multi-task learning, the part that balances the gradients.

    With :math:`u_i = g_i / \lVert g_i \rVert` and :math:`d = \sum_i w_i g_i`,

    .. math::

      u_i \cdot d = u_j \cdot d \text{ for all } i, j, \qquad \sum_i w_i = 1 ,

    that is :math:`w_i \propto (C^{-1} 1)_i / \lVert g_i \rVert` with :math:`C = U U^T`.
    Weights may be negative. If none is, this is :func:`chebyshev`.

    * Where the sum of :math:`(C^{-1} 1)_i / \lVert g_i \rVert` is negative, weights
      that sum to 1 point against every term. Their signs are changed, so that they sum
      to -1, and the state says ``turned``. Near zero that sum makes the
      step long, as in the paper.
    * Where C is singular, the weights are those of :math:`C + \epsilon I` for
      :math:`\epsilon \to 0`. Equal gradients share a weight. Where zero is the only
      direction with equal projections, as for opposed gradients and for more gradients
      than parameters, the direction is zero, and the state says ``stationary``.

    Terms whose gradient is zero are left out, with the weight 0.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K].

    Source:
      Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021, the closed form
      of the gradient balance (3.1).

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import imtl_g
      >>> weighting = imtl_g()
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 3.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights], bool(state.turned)
      ([0.75, 0.25], False)
      >>> [round(float(x), 6) for x in weights @ gradients]
      [0.75, 0.75]
    """

    def init(num_terms: int) -> IMTLGState:
        del num_terms
        return IMTLGState(
            stationary=jnp.zeros([], jnp.bool_), turned=jnp.zeros([], jnp.bool_)
        )

    def find(problem: Problem, state: IMTLGState) -> tuple[Weights, IMTLGState]:
        del state
        cosines, lengths, silent = _units.cosines(problem.gramian)
        solution, stationary = _equal_projections(cosines, silent)
        # Relative to the shortest, so that nothing over- or underflows.
        shortest = jnp.min(jnp.where(silent, jnp.inf, lengths))
        parts = jnp.where(silent, 0, solution * (shortest / lengths))
        total = jnp.sum(parts)
        # Where nothing moves, there is nothing to turn.
        turned = (total < 0) & ~stationary
        # A sum that is zero up to rounding.
        rounding = len(parts) * jnp.finfo(parts.dtype).eps * jnp.sum(jnp.abs(parts))
        size = jnp.maximum(jnp.abs(total), rounding)
        divisor = jnp.where((total < 0) & stationary, -size, size)
        weights = parts / jnp.where(size > 0, divisor, 1)
        return weights, IMTLGState(stationary, turned)

    return _weighting.method("imtl_g", init, find, reads_gramian=True)


def _equal_projections(
    cosines: Gramian, silent: Bool[Array, " K"]
) -> tuple[Weights, Bool[Array, ""]]:
    """A multiple of the limit of (C + eps I)^-1 1, and whether C times it is zero."""
    resolution = 8 * len(cosines) * float(jnp.finfo(cosines.dtype).eps)
    ones = jnp.where(silent, 0, 1).astype(cosines.dtype)
    values, vectors = jnp.linalg.eigh(cosines)
    kept = values > resolution
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)

    def solve(target: Weights) -> Weights:
        return _linear.dot(vectors, inverse * _linear.dot(target, vectors))

    x = solve(ones)
    x = x - solve(_linear.accurate_dot(cosines, x, -ones))
    # The part of the ones that has an eigenvalue of zero is divided by it. For nearly
    # equal gradients, the eigenvector is only known to the root of the resolution.
    nothing = _linear.dot(vectors, jnp.where(kept, 0, _linear.dot(ones, vectors)))
    stationary = jnp.max(jnp.abs(nothing)) > resolution**0.5
    return jnp.where(stationary, nothing, x), stationary
