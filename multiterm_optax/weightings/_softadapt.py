"""SoftAdapt: more weight for the losses that fall the least."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Losses, Scalar, Weights
from multiterm_optax._weighting import Weighting
from multiterm_optax.weightings import _by_losses

# Coefficients grow like 2^order; beyond, the largest nears float32's own.
_MAX_ORDER = 100


class SoftAdaptState(NamedTuple):
    """State of :func:`softadapt`.

    Attributes:
      held: The weights in use [K].
      history: The last n losses [n, K], the newest last; zeros before they were seen.
      seen: Number of losses seen so far, int32.
    """

    held: jax.Array
    history: jax.Array
    seen: jax.Array


def softadapt(
    beta: Scalar = 0.1,
    history: int = 5,
    *,
    order: int | None = None,
    normalized: bool = False,
    loss_weighted: bool | Literal["mean", "current"] = False,
    update_every: int = 1,
    sum_to: Scalar | Literal["terms"] = 1.0,
    eps: Scalar = 1e-8,
) -> Weighting:
    r"""SoftAdapt: a softmax of the losses' rates of change.

    With :math:`s_i` the rate of change of loss i per step, by the backward difference
    of order p at the newest of the last n losses,

    .. math::

      s_i = \sum_{m=0}^{p} c_m L_i(t - m), \qquad
      c_0 = \sum_{j=1}^{p} \frac1j, \quad c_m = \frac{(-1)^m}{m} \binom{p}{m}, \qquad
      w_i = \frac{e^{\beta s_i}}{\sum_j e^{\beta s_j}} .

    Variants, which may be combined: ``normalized`` first divides the rates by
    :math:`\sum_j |s_j| + \epsilon`; ``loss_weighted`` then replaces the weights by
    :math:`f_i w_i / (\sum_j f_j w_j + \epsilon)`, f the losses.

    The weights are equal until n losses have been seen. At step t the newest of them is
    the loss of step t.

    Args:
      beta: :math:`\beta`. Positive: more weight for losses that rise or fall the
        least. Negative: for those that fall the fastest. 0: equal weights.
      history: n, the number of losses kept, at least 2.
      order: p, the order of the difference, in [1, n - 1]. ``None``: n - 1. Noise in
        the losses is amplified like :math:`2^p`.
      normalized: Divide the rates by the sum of their sizes, so that ``beta`` does not
        depend on the losses' scale.
      loss_weighted: Multiply the weights by the losses: ``"mean"``, or True, by the
        mean of the last n; ``"current"`` by the newest. Losses must not be negative;
        where all are zero the weights are equal.
      update_every: The weights are found anew once in so many steps, the first time
        when n losses have been seen, and held in between.
      sum_to: What the weights add up to: a positive number, or ``"terms"`` for K. With
        the default, 1, the step is about K times shorter than on the plain sum of the
        losses.
      eps: :math:`\epsilon`, not negative. With ``loss_weighted`` and losses as small
        as this the weights add up to less; 0 keeps their sum at any scale.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only. State: n K + K
      numbers. A loss that is not finite makes the weights NaN until it has left the
      history.

    Raises:
      TypeError: ``history``, ``order`` or ``update_every`` is not a static int.
      ValueError: A hyperparameter is out of range, or losses are missing.

    Source:
      Heydari, Thompson and Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting
      of Neural Networks with Multi-Part Loss Functions", 2019, Alg. 1 and Eq. 3
      (``beta``, ``eps``, the mean), Eq. 4 (``"current"``). ``history`` is that of the
      examples of the authors' package; the paper leaves it open.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import softadapt
      >>> weighting = softadapt(beta=1.0, history=2)
      >>> state = weighting.init(2)
      >>> for losses in ([3.0, 2.0], [2.0, 2.0]):  # the second loss does not fall
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> [round(float(w), 3) for w in weights]
      [0.269, 0.731]
    """
    name = "softadapt"
    _checks.in_range(beta, "beta", name, open_low=True, open_high=True)
    history = _by_losses.static_int(history, "history", name, low=2)
    if order is None:
        order = history - 1
    order = _by_losses.static_int(
        order, "order", name, low=1, high=min(history - 1, _MAX_ORDER)
    )
    update_every = _by_losses.static_int(update_every, "update_every", name, low=1)
    _checks.one_of(
        loss_weighted, "loss_weighted", name, (False, True, "mean", "current")
    )
    _by_losses.check_total(sum_to, name)
    _checks.non_negative(eps, "eps", name)

    def rates(past: jax.Array) -> jax.Array:
        backward = jnp.asarray(_backward_difference(order), past.dtype)
        newest_first = past[::-1][: order + 1]
        return jnp.sum(backward[:, None] * newest_first, axis=0)

    def found(past: jax.Array) -> Weights:
        if past.shape[1] == 1:  # not 1 - eps
            return jnp.ones_like(past[0])
        speeds = rates(past)
        if normalized:
            size = jnp.sum(jnp.abs(speeds)) + eps
            speeds = speeds / jnp.where(size == 0, 1, size)
        # The shift by max(beta s), made before the product so that no beta overflows.
        top = jnp.where(beta >= 0, jnp.max(speeds), jnp.min(speeds))
        powers = jnp.exp(beta * (speeds - top))
        weights = powers / jnp.sum(powers)
        if loss_weighted:
            losses = past[-1] if loss_weighted == "current" else jnp.mean(past, axis=0)
            weighted = losses * weights
            whole = jnp.sum(weighted)
            silent = whole <= 0
            shares = weighted / (jnp.where(silent, 1, whole) + eps)
            weights = jnp.where(silent, 1 / weights.size, shares)
        return weights

    def init(num_terms: int) -> SoftAdaptState:
        dtype = jnp.result_type(float)
        equal = _by_losses.total(sum_to, num_terms) / num_terms
        return SoftAdaptState(
            held=jnp.full((num_terms,), equal, dtype),
            history=jnp.zeros((history, num_terms), dtype),
            seen=jnp.zeros([], jnp.int32),
        )

    def update(
        gramian: Gramian | None,
        state: SoftAdaptState,
        *,
        losses: Losses | None = None,
        **extra_args: Any,
    ) -> tuple[Weights, SoftAdaptState]:
        del gramian, extra_args
        num_terms, dtype = state.held.size, state.held.dtype
        newest = _weighting.losses_vector(losses, name, num_terms, needed=True)
        newest = jax.lax.stop_gradient(newest).astype(dtype)
        past = jnp.concatenate([state.history[1:], newest[None]])
        seen = jnp.asarray(optax.safe_increment(state.seen))
        due = (seen >= history) & ((seen - history) % update_every == 0)
        fresh = _by_losses.total(sum_to, num_terms) * found(past)
        held = jnp.where(due, fresh.astype(dtype), state.held)
        return held, SoftAdaptState(held, past, seen)

    return Weighting(init, update, reads_gramian=False, reads_losses=True)


def _backward_difference(order: int) -> list[float]:
    """Coefficients of the first derivative at the newest point, newest first."""
    return [
        sum(1 / j for j in range(1, order + 1)),
        *((-1) ** m * math.comb(order, m) / m for m in range(1, order + 1)),
    ]
