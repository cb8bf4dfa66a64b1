"""Nash-MTL: the bargaining solution, to which every term contributes equally."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _fair


class NashMTLState(NamedTuple):
    """State of :func:`nash_mtl`.

    Attributes:
      converged: Whether the last step's weights solve the equations. They do not where
        a combination of the gradients with positive weights is zero.
    """

    converged: jax.Array


def nash_mtl() -> Weighting:
    r"""The Nash bargaining solution: weights in inverse proportion to the terms' gains.

    .. math::

      w > 0, \qquad g_i \cdot d = (G w)_i = \frac{1}{w_i}, \qquad d = \sum_i w_i g_i

    Among the directions of its length, :math:`\lVert d \rVert^2 = K`, this one has the
    largest product of all :math:`g_i \cdot d`. It conflicts with no term and does not
    depend on the scale of any term: a loss multiplied by 1000 has a weight divided by
    1000. It does not become shorter as the gradients do, so plain descent needs a
    schedule, or :func:`optax.clip_by_global_norm` after it.

    Terms whose gradient is zero are left out, with the weight 0. With one term the
    weight is 1. Where a combination of the gradients with positive weights is zero, no
    solution exists. The weights are then those of the gramian with some roundings of
    the squared norms added to its diagonal, and not ``converged``: finite, but with a
    direction of zero if there are only the opposed gradients.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K],
        positive.

    Source:
      Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022, Claim 3.1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import nash_mtl
      >>> weighting = nash_mtl()
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 100.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights], bool(state.converged)
      ([1.0, 0.01], True)
    """

    def init(num_terms: int) -> NashMTLState:
        del num_terms
        return NashMTLState(converged=jnp.ones([], jnp.bool_))

    def find(problem: Problem, state: NashMTLState) -> tuple[Weights, NashMTLState]:
        del state
        ones = jnp.ones_like(problem.squared_norms)
        weights, converged = _fair.find(problem, 1.0, ones)
        return weights, NashMTLState(converged)

    return _weighting.method("nash_mtl", init, find, reads_gramian=True)
