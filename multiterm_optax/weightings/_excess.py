"""Exponentiated gradient on the excess of each loss over its lowest value."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _named, _weighting, _words
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


class ExcessState(NamedTuple):
    """State of :func:`excess`.

    Attributes:
      logits: The logarithms of the weights [K], up to a constant.
      first: The first losses [K].
      lowest: The lowest losses so far [K].
      seen: Number of losses seen so far of each term [K], int32.
    """

    logits: jax.Array
    first: jax.Array
    lowest: jax.Array
    seen: jax.Array


def excess(learning_rate: Scalar = 0.01, floor: Any = None) -> Weighting:
    r"""Exponentiated gradient on how far each loss is above its lowest value.

    .. math::

      w_i \propto w_i e^{\eta e_i}, \quad \sum_i w_i = K, \qquad
      e_i = \frac{L_i - b_i}{L_i(0) - b_i} \text{ clipped to } [0, 1],

    starting from equal weights, where :math:`b_i` is ``floor``, the lowest value that
    the loss can have, or else the lowest so far. This is ExcessMTL's rule with an
    excess that is read off the losses; ExcessMTL itself estimates it from the
    gradients.

    Args:
      learning_rate: :math:`\eta`.
      floor: The :math:`b_i` [K], of either sign, such as the losses of a model trained
        on each term alone. ``None``: the lowest losses so far. A loss that only falls
        then has no excess, and the weights stay equal: they respond only to setbacks.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; the weights [K]
      sum to K, the number of present terms. Losses may be negative. A loss that is not
      finite changes no weight.

    Raises:
      ValueError: ``floor`` is not K finite numbers, or losses are missing.

    Source:
      The rule and its rate: He et al., "Robust Multi-Task Learning with Excess Risks",
      ICML 2024. Excess over a reference's loss: Xie et al., "DoReMi", NeurIPS 2023.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import excess
      >>> weighting = excess(learning_rate=1.0, floor=[0.0, 1.0])
      >>> state = weighting.init(2)
      >>> for losses in ([4.0, 2.0], [1.0, 2.0]):  # the excess: 1 and 1, 1/4 and 1
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> [round(float(w), 3) for w in weights]  # 2 softmax(1/4, 1)
      [0.642, 1.358]
    """
    name = "excess"
    _checks.in_range(
        learning_rate, "learning_rate", name, open_low=True, open_high=True
    )

    def floors(num_terms: int) -> Any:
        if floor is None:
            return None
        try:
            values = jnp.asarray(
                _named.by_name(floor, "floor", name), jnp.result_type(float)
            )
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}: floor must be {num_terms} numbers, one for each term, found "
                f"{_words.describe(floor)}."
            ) from None
        if values.shape != (num_terms,):
            raise ValueError(
                f"{name}: floor must have shape ({num_terms},), one value for each of "
                f"num_terms={num_terms} terms{_named.in_order(num_terms)}, found shape "
                f"{values.shape}{_named.listed(floor)}."
            )
        _checks.in_range(
            values, "floor", name, open_low=True, open_high=True, array=True
        )
        return values

    def init(num_terms: int) -> ExcessState:
        floors(num_terms)
        zeros = (jnp.zeros((num_terms,), jnp.result_type(float)) for _ in range(3))
        return ExcessState(*zeros, seen=jnp.zeros((num_terms,), jnp.int32))

    def find(problem: Problem, state: ExcessState) -> tuple[Weights, ExcessState]:
        losses, base = problem.losses, floors(problem.num_terms)
        counted = problem.keep_absent(jnp.isfinite(losses), jnp.zeros_like(losses) > 0)
        losses = jnp.where(counted, losses, state.lowest)
        fresh = state.seen == 0
        first = jnp.where(fresh, losses, state.first)
        lowest = jnp.where(fresh, losses, jnp.minimum(losses, state.lowest))
        if base is None:
            base = lowest
        # Halves, whose differences cannot overflow.
        left, whole = (0.5 * one - 0.5 * base for one in (losses, first))
        # If a loss began at its lowest value, anything above it counts in full.
        ratio = jnp.minimum(left, whole) / jnp.where(whole > 0, whole, 1)
        ratio = jnp.where(whole > 0, ratio, jnp.sign(left))
        ratio = jnp.clip(jnp.where(counted, ratio, 0), 0, 1)
        # Relative to their mean, the logits stay small, and absent terms change
        # nothing.
        among = problem._replace(present=counted)
        gap = jnp.where(counted, ratio - among.mean(ratio), 0)
        new = ExcessState(
            logits=(state.logits + learning_rate * gap).astype(losses.dtype),
            first=first,
            lowest=lowest,
            seen=jnp.asarray(optax.safe_increment(state.seen)),
        )
        new = jax.tree.map(lambda a, b: jnp.where(counted, a, b), new, state)
        return problem.num_present * _losses.softmax(problem, new.logits), new

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=ExcessState._fields
    )
