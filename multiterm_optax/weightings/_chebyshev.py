"""The Chebyshev direction, whose smallest cosine with a gradient is the largest."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _min_norm, _units


class ChebyshevState(NamedTuple):
    """State of :func:`chebyshev`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
    """

    converged: jax.Array


def chebyshev() -> Weighting:
    r"""The direction whose smallest cosine with a gradient is the largest.

    With :math:`u_i = g_i / \lVert g_i \rVert`,

    .. math::

      \frac{d}{\lVert d \rVert} = \arg\max_{\lVert x \rVert = 1} \min_i \, u_i \cdot x ,
      \qquad d = \sum_i w_i g_i, \quad \sum_i w_i = 1 .

    It points to the shortest vector in the convex hull of the :math:`u_i`, which
    :func:`mgda` finds for the gradients as they are. It conflicts with no term, no
    term's scale changes where it points, and it is zero where the parameters are Pareto
    stationary. Its cosines are equal for all terms that have a weight; where all terms
    have one, this is :func:`imtl_g`.

    Terms whose gradient is zero are left out, with the weight 0.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K], not
      negative, which sum to 1 unless all gradients are zero.

    Source:
      The centre of the gradients' dual cone, the minimax of the angles; after Desideri,
      "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
      2012, for gradients of length 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import chebyshev
      >>> weighting = chebyshev()
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 3.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(x), 6) for x in weights @ gradients], bool(state.converged)
      ([0.75, 0.75], True)
    """

    def init(num_terms: int) -> ChebyshevState:
        del num_terms
        return ChebyshevState(converged=jnp.ones([], jnp.bool_))

    def find(problem: Problem, state: ChebyshevState) -> tuple[Weights, ChebyshevState]:
        del state
        cosines, lengths, silent = _units.cosines(problem.gramian)
        awake = problem._replace(gramian=cosines, present=~silent)
        weights, converged = _min_norm.find(awake, None)
        # What is zero up to rounding must have no weight, however short the gradient.
        rounding = 8 * jnp.finfo(weights.dtype).eps
        weights = jnp.where(weights > rounding, weights, 0)
        # These are for the gradients as they are, relative to the shortest.
        shortest = jnp.min(jnp.where(silent, jnp.inf, lengths))
        weights = jnp.where(silent, 0, weights * (shortest / lengths))
        total = jnp.sum(weights)
        weights = weights / jnp.where(total > 0, total, 1)
        return weights, ChebyshevState(converged)

    return _weighting.method("chebyshev", init, find, reads_gramian=True)
