# Longer than most: the variants of the paper and its code, and terms that are absent.
"""SoftAdapt: more weight for the losses that fall the least."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses

# Coefficients grow like 2^order; beyond this order they would overflow in float32.
_MAX_ORDER = 100


class SoftAdaptState(NamedTuple):
    """State of :func:`softadapt`.

    Attributes:
      held: The weights in use [K], if all terms are present.
      history: The last n losses [n, K], the newest last; zeros before they are seen.
      seen: Number of losses seen so far of each term [K], int32.
    """

    held: jax.Array
    history: jax.Array
    seen: jax.Array


def softadapt(
    beta: Scalar | None = None,
    history: int = 5,
    *,
    order: int | None = None,
    normalized: bool = True,
    loss_weighted: bool | Literal["mean", "current"] = False,
    update_every: int = 1,
    sum_to: Scalar | Literal["terms"] = 1.0,
    eps: Scalar = 0.0,
) -> Weighting:
    r"""SoftAdapt: a softmax of the losses' rates of change.

    With :math:`s_i` the rate of change of loss i per step, by the backward difference
    of order p at the newest of the last n losses,

    .. math::

      s_i = \sum_{m=0}^{p} c_m L_i(t - m), \qquad
      c_0 = \sum_{j=1}^{p} \frac1j, \quad c_m = \frac{(-1)^m}{m} \binom{p}{m}, \qquad
      w_i \propto \exp \frac{\beta s_i}{\sum_j |s_j|} .

    The weights are equal until n losses have been seen. A rate that is only rounding of
    its losses counts as 0.

    Args:
      beta: :math:`\beta`. Positive: more weight for losses that rise or fall the
        least. Negative: for those that fall the fastest. 0: equal weights. ``None``: 1,
        which lets no weight be more than e times another, or with
        ``normalized=False`` the paper's 0.1.
      history: n, the number of losses kept, at least 2.
      order: p, the order of the difference, in [1, n - 1]. ``None``: n - 1.
      normalized: Divide the rates by :math:`\sum_j |s_j| + \epsilon`, so that the
        weights do not depend on the losses' scale. ``False``: the paper's original
        form, :math:`w_i \propto e^{\beta s_i}`, in which losses much below 1 have
        equal weights.
      loss_weighted: If set, replace the weights by :math:`f_i w_i / (\sum_j f_j w_j +
        \epsilon)`, where f is the mean of the last n losses (``"mean"`` or True) or the
        newest (``"current"``); a negative loss counts by its magnitude.
      update_every: The weights are recomputed once in this many steps, first when n
        losses have been seen, and held in between.
      sum_to: The sum of the weights: a positive number, or ``"terms"`` for K, the
        number of present terms. With 1 the step is about K times shorter than on the
        plain sum of the losses.
      eps: :math:`\epsilon`, not negative; 1e-8 in the paper.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; weights [K]. A
      loss that is not finite makes the weights NaN until it has left the history. Steps
      in which a term is absent do not enter its history.

    Raises:
      TypeError: ``history``, ``order`` or ``update_every`` is not a static int.
      ValueError: A hyperparameter is out of range, or losses are missing.

    Source:
      Heydari, Thompson and Mehmood, "SoftAdapt: Techniques for Adaptive Loss Weighting
      of Neural Networks with Multi-Part Loss Functions", 2019, Alg. 1, Eq. 3 and 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import softadapt
      >>> weighting = softadapt(history=2)
      >>> state = weighting.init(2)
      >>> for losses in ([3.0, 2.0], [2.0, 2.0]):  # the second loss does not fall
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> [round(float(w), 3) for w in weights]
      [0.269, 0.731]
    """
    name = "softadapt"
    if beta is None:
        beta = 1.0 if normalized else 0.1
    _checks.in_range(beta, "beta", name, open_low=True, open_high=True)
    history = _checks.static_int(history, "history", name, low=2)
    if order is None:
        order = history - 1
    order = _checks.static_int(
        order, "order", name, low=1, high=min(history - 1, _MAX_ORDER)
    )
    update_every = _checks.static_int(update_every, "update_every", name, low=1)
    _checks.one_of(
        loss_weighted, "loss_weighted", name, (False, True, "mean", "current")
    )
    _losses.check_sum_to(sum_to, name)
    _checks.non_negative(eps, "eps", name)

    def rates(past: jax.Array) -> jax.Array:
        backward = jnp.asarray(_backward_difference(order), past.dtype)
        parts = backward[:, None] * past[::-1][: order + 1]
        speeds = jnp.sum(parts, axis=0)
        # The rounding errors of losses that stand still must not be taken for a
        # difference between the terms, which the normalized form would show in full.
        rounding = jnp.finfo(past.dtype).eps * jnp.sum(jnp.abs(parts), axis=0)
        still = (jnp.abs(speeds) <= rounding) & jnp.isfinite(rounding)
        return jnp.where(still, 0, speeds)

    def from_rates(past: jax.Array, known: jax.Array) -> Weights:
        # Only the terms that have n losses are read.
        past = jnp.where(known[None, :], past, 0)
        shares = known.astype(past.dtype)
        num_known = jnp.sum(shares)
        speeds = rates(past)
        # Shifts by max(beta s), before any product, so that no beta overflows.
        top = jnp.where(
            beta >= 0,
            jnp.max(speeds, where=known, initial=-jnp.inf),
            jnp.min(speeds, where=known, initial=jnp.inf),
        )
        top = jnp.where(num_known == 0, 0, top)
        shifted = speeds - top
        if normalized:
            size = jnp.sum(jnp.abs(speeds)) + eps
            shifted = shifted / jnp.where(size == 0, 1, size)
        powers = jnp.where(known, jnp.exp(beta * shifted), 0)
        weights = powers / jnp.where(num_known == 0, 1, jnp.sum(powers))
        if loss_weighted:
            sizes = jnp.abs(past)
            sizes = sizes[-1] if loss_weighted == "current" else jnp.mean(sizes, axis=0)
            weighted = sizes * weights
            total = jnp.sum(weighted)
            all_zero = total <= 0
            weights = jnp.where(
                all_zero,
                shares / jnp.maximum(num_known, 1),
                weighted / (jnp.where(all_zero, 1, total) + eps),
            )
        return jnp.where(num_known == 1, shares, weights)  # not 1 - eps

    def init(num_terms: int) -> SoftAdaptState:
        dtype = jnp.result_type(float)
        equal = _losses.target_sum(sum_to, num_terms) / num_terms
        return SoftAdaptState(
            held=jnp.full((num_terms,), equal, dtype),
            history=jnp.zeros((history, num_terms), dtype),
            seen=jnp.zeros((num_terms,), jnp.int32),
        )

    def find(problem: Problem, state: SoftAdaptState) -> tuple[Weights, SoftAdaptState]:
        dtype = state.held.dtype
        past = jnp.concatenate([state.history[1:], problem.losses[None]])
        past = problem.keep_absent(past, state.history)
        seen = jnp.asarray(optax.safe_increment(state.seen))
        seen = problem.keep_absent(seen, state.seen)

        known = seen >= history
        if problem.present is not None:
            known = known & problem.present
        target_sum = _losses.target_sum(sum_to, problem.num_present)
        share = problem.equal_shares(dtype)
        part = jnp.sum(known.astype(dtype)) / problem.num_present
        fresh = target_sum * jnp.where(known, part * from_rates(past, known), share)
        due = jnp.any(known & ((seen - history) % update_every == 0)) | ~jnp.any(known)
        if problem.present is None:
            weights = jnp.where(due, fresh, state.held).astype(dtype)
            return weights, SoftAdaptState(weights, past, seen)
        held = problem.only_present(state.held)
        weights = jnp.where(due, fresh, _losses.summing_to(problem, held, target_sum))
        # The held weights keep their sum over all terms; a NaN in them does not
        # persist.
        sum_held = jnp.sum(held)
        equal = _losses.target_sum(sum_to, problem.num_terms) / problem.num_terms
        sum_held = jnp.where(
            sum_held >= 0,
            sum_held,
            jnp.sum(problem.only_present(jnp.full_like(held, equal))),
        )
        held = weights * (sum_held / target_sum)
        return weights.astype(dtype), SoftAdaptState(held.astype(dtype), past, seen)

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=("held", "history", "seen")
    )


def _backward_difference(order: int) -> list[float]:
    """Coefficients of the first derivative at the newest point, newest first."""
    return [
        sum(1 / j for j in range(1, order + 1)),
        *((-1) ** m * math.comb(order, m) / m for m in range(1, order + 1)),
    ]
