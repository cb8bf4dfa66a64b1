"""ReLoBRaLo: relative progress since the last step, now and then since the first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Losses, Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


class ReLoBRaLoState(NamedTuple):
    """State of :func:`relobralo`.

    Attributes:
      held: The weights of the last step [K], if all terms were present in it.
      first: The first losses [K].
      last: The losses of the last step [K].
      seen: Number of losses seen so far of each term [K], int32.
      key: Data of the next step's random key, uint32.
    """

    held: jax.Array
    first: jax.Array
    last: jax.Array
    seen: jax.Array
    key: jax.Array


def relobralo(
    key: jax.Array,
    temperature: Scalar = 1.0,
    alpha: Scalar = 0.999,
    rho: Scalar = 0.999,
) -> Weighting:
    r"""Relative loss balancing with random lookback.

    .. math::

      \lambda(t) &= \alpha \bigl( \rho_t \lambda(t-1) + (1 - \rho_t) b(t; 0) \bigr) \\
        &\qquad + (1 - \alpha) b(t; t-1) \\
      b_i(t; s) &= K \frac{e^{L_i(t) / T L_i(s)}}{\sum_j e^{L_j(t) / T L_j(s)}}

    :math:`w = \lambda`, and :math:`\lambda(0) = 1`. :math:`\rho_t` is 1, or 0 for a
    look back to the first step; it is drawn anew in each step, for all terms together.

    Args:
      key: A random key, typed (``jax.random.key``) or raw (``jax.random.PRNGKey``).
      temperature: T, positive. The larger, the more equal the weights.
      alpha: :math:`\alpha`, in [0, 1]: the share of the past.
      rho: The probability of :math:`\rho_t = 1`, in [0, 1].

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; the weights [K]
      sum to K, the number of present terms. A negative loss counts by its magnitude,
      a ratio to a loss of zero as 1, and a loss that is not finite as unchanged.

    Raises:
      TypeError: ``key`` is not one random key.
      ValueError: A hyperparameter is out of range, or losses are missing.

    Source:
      Bischof and Kraus, "Multi-Objective Loss Balancing for Physics-Informed Deep
      Learning", 2021.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from multiterm_optax import relobralo
      >>> weighting = relobralo(jax.random.key(0), alpha=0.0)
      >>> state = weighting.init(2)
      >>> for losses in ([4.0, 2.0], [2.0, 2.0]):
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> [round(float(w), 3) for w in weights]  # 2 softmax(1/2, 1)
      [0.755, 1.245]
    """
    name = "relobralo"
    data, impl = _checks.prng_key(key, "key", name)
    _checks.in_range(temperature, "temperature", name, low=0.0, open_low=True)
    _checks.in_range(alpha, "alpha", name, low=0.0, high=1.0)
    _checks.in_range(rho, "rho", name, low=0.0, high=1.0)

    def init(num_terms: int) -> ReLoBRaLoState:
        dtype = jnp.result_type(float)
        return ReLoBRaLoState(
            held=jnp.ones((num_terms,), dtype),
            first=jnp.zeros((num_terms,), dtype),
            last=jnp.zeros((num_terms,), dtype),
            seen=jnp.zeros((num_terms,), jnp.int32),
            key=jnp.array(data),  # each group's state has its own copy
        )

    def find(problem: Problem, state: ReLoBRaLoState) -> tuple[Weights, ReLoBRaLoState]:
        num_present = 1.0 * problem.num_present
        finite = jnp.isfinite(problem.losses)
        losses = jnp.where(finite, problem.losses, state.last)
        first = jnp.where(state.seen == 0, losses, state.first)

        def balance(reference: Losses) -> Weights:
            ratios = _losses.ratio(losses, reference) / temperature
            return num_present * _losses.softmax(problem, ratios)

        held, scale = state.held, None
        if problem.present is not None:
            held = problem.only_present(held)
            scale = jnp.sum(held) / num_present
            held = _losses.summing_to(problem, held, num_present)
        now = jax.random.wrap_key_data(state.key, impl=impl)
        later, draw = jax.random.split(now)
        keeps = jax.random.bernoulli(draw, jnp.asarray(rho, losses.dtype))
        past = jnp.where(keeps, held, balance(first))
        weights = alpha * past + (1 - alpha) * balance(state.last)
        weights = weights.astype(state.held.dtype)
        seen = jnp.asarray(optax.safe_increment(state.seen))
        return weights, ReLoBRaLoState(
            held=weights if scale is None else weights * scale,
            first=first,
            last=losses,
            seen=jnp.where(finite, seen, state.seen),
            key=jax.random.key_data(later),
        )

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=("held", "first", "last", "seen")
    )
