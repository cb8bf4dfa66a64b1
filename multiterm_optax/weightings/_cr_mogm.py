"""CR-MOGM: a moving average of the weights that another weighting finds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Mixing, Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting


class CRMOGMState(NamedTuple):
    """State of :func:`cr_mogm`.

    Attributes:
      weighting: State of the weighting.
      average: Moving average, from zero, of the weights found, [K] or [K, K].
      initial: The share of the first weights, 1 / K, that is left in the average, in
        the same shape.
    """

    weighting: Any
    average: jax.Array
    initial: jax.Array


def cr_mogm(weighting: Weighting, decay: Scalar = 0.9) -> Weighting:
    r"""Smooths the weights that another weighting finds.

    With the weights :math:`\hat w_t` that ``weighting`` finds in step :math:`t`,

    .. math:: w_t = \alpha \, w_{t-1} + (1 - \alpha) \, \hat w_t , \qquad w_0 = 1 / K .

    On noisy batches the weights of MGDA, PCGrad or CAGrad depend on the very gradients
    that they weigh, which biases the step; averaged weights depend on them less. The
    direction may, however, conflict with a term.

    Args:
      weighting: A weighting, such as :func:`multiterm_optax.mgda`.
      decay: :math:`\alpha`, in [0, 1). With 0 it is the weighting itself.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads what ``weighting`` reads; weights
      of the same shape. The average of matrices starts from the identity over K. A
      skipped step leaves the average as it was, and an absent term keeps its own.

    Raises:
      TypeError: ``weighting`` is not a weighting.
      ValueError: ``decay`` is out of range.

    Source:
      Zhou et al., "On the Convergence of Stochastic Multi-Objective Gradient
      Manipulation and Beyond", NeurIPS 2022: CR-MOGM.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import cr_mogm, mgda
      >>> weighting = cr_mogm(mgda(), decay=0.5)
      >>> gramian, state = jnp.array([[1.0, 0.0], [0.0, 4.0]]), weighting.init(2)
      >>> for _ in range(3):  # MGDA finds [0.8, 0.2]
      ...     weights, state = weighting.update(gramian, state)
      ...     print([round(float(w), 4) for w in weights])
      [0.65, 0.35]
      [0.725, 0.275]
      [0.7625, 0.2375]
    """
    name = "cr_mogm"
    _weighting.check(weighting, name)
    _checks.decay(decay, "decay", name)

    def init(num_terms: int) -> CRMOGMState:
        state = weighting.init(num_terms)
        like = _weighting.neutral_weights(weighting, state, num_terms)
        return CRMOGMState(state, jnp.zeros_like(like), jnp.ones_like(like))

    def find(
        problem: Problem, state: CRMOGMState
    ) -> tuple[Weights | Mixing, CRMOGMState]:
        found, inner = _weighting.inside(weighting, problem, state.weighting)
        dtype = state.average.dtype
        keep = jnp.asarray(decay, dtype)
        # An absent term or a skipped step leaves the average alone.
        moved = _weighting.mask_weights(problem.present, jnp.ones_like(found)) > 0
        ready = _weighting.ready(inner)
        if ready is not None:
            moved = moved & ready
        average = keep * state.average + (1 - keep) * found.astype(dtype)
        average = jnp.where(moved, average, state.average)
        initial = jnp.where(moved, keep * state.initial, state.initial)
        first = problem.equal_shares(dtype)
        weights = average + initial * (first if found.ndim == 1 else jnp.diag(first))
        if ready is not None:
            weights = jnp.where(ready, weights, 0)
        return weights, CRMOGMState(inner, average, initial)

    return _weighting.method(
        name,
        init,
        find,
        **_weighting.reads_of(weighting),
        by_term=("average", "initial"),
    )
