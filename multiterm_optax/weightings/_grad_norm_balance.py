"""Weights in inverse proportion to the gradients' norms, averaged over the steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _against_mean


class GradNormBalanceState(NamedTuple):
    """State of :func:`grad_norm_balance`.

    Attributes:
      averages: Moving averages of the weights [K], 1 before the first step.
    """

    averages: jax.Array


def grad_norm_balance(decay: Scalar = 0.9) -> Weighting:
    r"""Weights that bring the gradients' norms to their mean, as jaxpi finds them.

    .. math::

      \hat w_i = \frac{\frac1K \sum_j \lVert g_j \rVert}{\lVert g_i \rVert}, \qquad
      w_i \leftarrow \beta w_i + (1 - \beta) \hat w_i, \qquad w_i = 1 \text{ at first.}

    The ratios are averaged, not the norms: a step in which a gradient is nearly zero
    raises its weight for a long time. :func:`multiterm_optax.by_norm` averages norms.

    Args:
      decay: :math:`\beta`, in [0, 1).

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gradients' norms; weights [K],
      positive. The weight of a term whose gradient is zero stays, and so do all weights
      if a norm is not finite. No ratio counts for more than 1e30.

    Raises:
      ValueError: ``decay`` is out of range.

    Source:
      Wang, Sankaran, Wang and Perdikaris, "An Expert's Guide to Training
      Physics-informed Neural Networks", 2023, Alg. 1, and jaxpi, its code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import grad_norm_balance
      >>> weighting = grad_norm_balance()
      >>> squared_norms = jnp.array([1.0, 3.0]) ** 2  # their mean is 2
      >>> weights, _ = weighting.update(squared_norms, weighting.init(2))
      >>> [round(float(w), 4) for w in weights]
      [1.1, 0.9667]
    """
    name = "grad_norm_balance"
    _checks.decay(decay, "decay", name)

    def init(num_terms: int) -> GradNormBalanceState:
        return GradNormBalanceState(jnp.ones((num_terms,), jnp.result_type(float)))

    def find(
        problem: Problem, state: GradNormBalanceState
    ) -> tuple[Weights, GradNormBalanceState]:
        norms = jnp.sqrt(problem.squared_norms)
        averages = _against_mean.step(problem, norms, state.averages, decay)
        return averages, GradNormBalanceState(averages)

    return _weighting.method(name, init, find, reads_norms=True, by_term=("averages",))
