"""Dynamic weight average: more weight for the losses that fall the least."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


class DWAState(NamedTuple):
    """State of :func:`dwa`.

    Attributes:
      running: Sums of the losses' magnitudes in the epoch so far [K], each divided by
        the epoch's length.
      averages: Mean magnitudes of the last epoch and of the one before it, [2, K].
      seen: Number of losses seen so far of each term [K], int32.
    """

    running: jax.Array
    averages: jax.Array
    seen: jax.Array


def dwa(temperature: Scalar = 2.0, *, steps_per_epoch: int = 1) -> Weighting:
    r"""Dynamic weight average: a softmax of the ratios of successive losses.

    .. math::

      w_i(t) = K \frac{e^{r_i(t-1) / T}}{\sum_j e^{r_j(t-1) / T}}, \qquad
      r_i(t-1) = \frac{L_i(t-1)}{L_i(t-2)}

    t counts epochs of steps in which the term is present, and :math:`L_i(t)` is the
    mean over epoch t. A negative loss counts by its magnitude. The weights are 1 in the
    first two epochs and constant within each epoch.

    Args:
      temperature: T, positive. The larger, the more equal the weights.
      steps_per_epoch: Number of steps in an epoch. With 1 each step is an epoch, and
        the ratios carry the noise of the batches.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; the weights [K]
      sum to K, the number of present terms. State: 3 K numbers and K counts. A ratio to
      a loss of zero counts as 1, which means no change. A loss that is not finite makes
      the weights NaN for the two epochs after its own.

    Raises:
      TypeError: ``steps_per_epoch`` is not a static int.
      ValueError: A hyperparameter is out of range, or losses are missing.

    Source:
      Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR
      2019, Eq. 7; ``temperature`` and the first two epochs are as in the paper.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import dwa
      >>> weighting = dwa()
      >>> state = weighting.init(2)
      >>> for losses in ([4.0, 2.0], [2.0, 2.0], [1.0, 2.0]):
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> [round(float(w), 3) for w in weights]  # the ratios are 0.5 and 1
      [0.876, 1.124]
    """
    name = "dwa"
    _checks.in_range(temperature, "temperature", name, low=0.0, open_low=True)
    length = _checks.static_int(steps_per_epoch, "steps_per_epoch", name, low=1)

    def init(num_terms: int) -> DWAState:
        dtype = jnp.result_type(float)
        return DWAState(
            running=jnp.zeros((num_terms,), dtype),
            averages=jnp.zeros((2, num_terms), dtype),
            seen=jnp.zeros((num_terms,), jnp.int32),
        )

    def find(problem: Problem, state: DWAState) -> tuple[Weights, DWAState]:
        last, before_last = state.averages
        # These are 1 in the first two epochs, which have no earlier losses.
        ratios = _losses.ratio(last, before_last)
        powers = jnp.exp((ratios - problem.largest(ratios)) / temperature)
        weights = _losses.summing_to(problem, powers, 1.0 * problem.num_present)

        running = state.running + jnp.abs(problem.losses) / length
        seen = jnp.asarray(optax.safe_increment(state.seen))
        ended = seen % length == 0
        averages = jnp.where(ended, jnp.stack([running, last]), state.averages)
        running = jnp.where(ended, 0, running)
        return weights.astype(running.dtype), DWAState(running, averages, seen)

    return _weighting.method(
        name,
        init,
        find,
        reads_losses=True,
        by_term=("running", "averages", "seen"),
    )
