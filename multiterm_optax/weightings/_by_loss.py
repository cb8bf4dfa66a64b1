"""Loss balancing: every term counts by the share of its loss that a step removes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _averages, _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _sizes


class ByLossState(NamedTuple):
    """State of :func:`by_loss`.

    Attributes:
      means: Bias-corrected moving averages of the losses' sizes [K].
      seen: Number of losses seen so far of each term [K], int32.
    """

    means: jax.Array
    seen: jax.Array


def by_loss(decay: Scalar = 0.999) -> Weighting:
    r"""Weights in inverse proportion to a slow average of each loss.

    With the bias-corrected moving average :math:`m_i` of :math:`\lvert L_i \rvert`,

    .. math::

      w_i = \frac{1}{m_i} \Bigl( \prod_j m_j \Bigr)^{1/K} .

    Up to one factor this is the gradient of :math:`\sum_i \log L_i`, smoothed:
    multiplying a loss by a constant changes the weights by one common factor. The
    weights' geometric mean is 1. A term whose average is zero keeps the weight 1.

    Args:
      decay: :math:`\beta`, the decay rate of the averages, in [0, 1). The average looks
        back over about :math:`1 / (1 - \beta)` steps, which should be a good part of
        the run: 0.999 suits runs of a few thousand steps, and 0.9 follows the losses
        closely.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; weights [K],
      positive. State: K numbers and K counts. A negative loss counts by its
      magnitude. A loss that is not finite leaves its average as it was.

    Raises:
      ValueError: ``decay`` is out of range, or losses are missing.

    Source:
      Without the average these are the weights of the geometric mean of the losses:
      Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric
      Loss Strategy for Multi-Task Learning", CVPR workshops, 2019.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import by_loss
      >>> weighting = by_loss()
      >>> losses = jnp.array([1.0, 100.0])
      >>> weights, _ = weighting.update(None, weighting.init(2), losses=losses)
      >>> [round(float(w), 4) for w in weights]
      [10.0, 0.1]
    """
    name = "by_loss"
    _checks.decay(decay, "decay", name)

    def init(num_terms: int) -> ByLossState:
        return ByLossState(
            means=jnp.zeros((num_terms,), jnp.result_type(float)),
            seen=jnp.zeros((num_terms,), jnp.int32),
        )

    def find(problem: Problem, state: ByLossState) -> tuple[Weights, ByLossState]:
        finite = jnp.isfinite(problem.losses)
        counted = problem.keep_absent(finite, jnp.zeros_like(finite))
        seen = jnp.asarray(optax.safe_increment(state.seen))
        seen = jnp.where(counted, seen, state.seen)
        sizes = jnp.where(counted, jnp.abs(problem.losses), 0)
        share = _averages.newest_share(decay, seen)
        moved = state.means + share * (sizes - state.means)
        means = jnp.where(counted, moved, state.means).astype(state.means.dtype)
        return _sizes.inverse(problem, means), ByLossState(means, seen)

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=("means", "seen")
    )
