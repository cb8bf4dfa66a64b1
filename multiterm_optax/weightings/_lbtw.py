"""Loss-balanced task weighting: weights by how little each loss has fallen."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


class LBTWState(NamedTuple):
    """State of :func:`lbtw`.

    Attributes:
      first: The losses [K] that later ones are compared with; zeros before the first.
      seen: Number of losses seen so far of each term [K], int32.
    """

    first: jax.Array
    seen: jax.Array


def lbtw(
    alpha: Scalar = 0.5,
    *,
    steps_per_epoch: int | None = None,
    sum_to: Scalar | Literal["terms"] | None = None,
) -> Weighting:
    r"""Loss-balanced task weighting: a power of each loss relative to its first value.

    .. math:: w_i(t) = \left| \frac{L_i(t)}{L_i(0)} \right|^{\alpha}

    A term that has learned more has less weight. The weights are not normalised: they
    fall as training goes on, and the step length falls with them.

    Args:
      alpha: :math:`\alpha`, not negative. 0: weights of 1.
      steps_per_epoch: ``None``: :math:`L_i(0)` is the first loss of the run. An int: it
        is the first loss of each epoch of that many steps, as in the authors' code; the
        weights are 1 in that step. Only steps in which a term is present count for it.
      sum_to: ``None``: the weights as they are. A positive number: scaled to this sum.
        ``"terms"``: scaled to K, the number of present terms, as in the authors' code.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only. State: K numbers
      and K counts. A negative loss counts by its magnitude. A ratio to a loss of zero
      counts as 1, which means no change. If :math:`L_i(0)` is not finite, neither is
      the weight.

    Raises:
      TypeError: ``steps_per_epoch`` is not a static int.
      ValueError: A hyperparameter is out of range, or losses are missing.

    Source:
      Liu, Liang and Gitter, "Loss-Balanced Task Weighting to Reduce Negative Transfer
      in Multi-Task Learning", AAAI 2019; ``alpha`` as in the authors' settings.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import lbtw
      >>> weighting = lbtw()
      >>> state = weighting.init(2)
      >>> for losses in ([4.0, 2.0], [1.0, 2.0]):
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> weights.tolist()
      [0.5, 1.0]
    """
    name = "lbtw"
    _checks.non_negative(alpha, "alpha", name)
    if steps_per_epoch is not None:
        steps_per_epoch = _checks.static_int(
            steps_per_epoch, "steps_per_epoch", name, low=1
        )
    if sum_to is not None:
        _losses.check_sum_to(sum_to, name)

    def init(num_terms: int) -> LBTWState:
        return LBTWState(
            first=jnp.zeros((num_terms,), jnp.result_type(float)),
            seen=jnp.zeros((num_terms,), jnp.int32),
        )

    def find(problem: Problem, state: LBTWState) -> tuple[Weights, LBTWState]:
        step = state.seen if steps_per_epoch is None else state.seen % steps_per_epoch
        first = jnp.where(step == 0, problem.losses, state.first)
        weights = _losses.ratio(problem.losses, first) ** alpha
        finite = jnp.isfinite(problem.losses) & jnp.isfinite(first)
        weights = jnp.where(finite, _losses.bounded(weights), weights)
        if sum_to is not None:
            target_sum = _losses.target_sum(sum_to, problem.num_present)
            weights = _losses.summing_to(problem, weights, target_sum)
        seen = jnp.asarray(optax.safe_increment(state.seen))
        return weights.astype(first.dtype), LBTWState(first, seen)

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=("first", "seen")
    )
