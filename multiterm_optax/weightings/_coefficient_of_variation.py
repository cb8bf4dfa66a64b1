"""CoV weighting: more weight for the losses that vary most relative to their size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


class CoefficientOfVariationState(NamedTuple):
    """State of :func:`coefficient_of_variation`.

    Attributes:
      mean_loss: Running means of the losses' magnitudes [K].
      mean_change: Running means of the ratios less 1 [K].
      deviation: Running standard deviations of the ratios [K].
      seen: Number of losses seen so far of each term [K], int32.
    """

    mean_loss: jax.Array
    mean_change: jax.Array
    deviation: jax.Array
    seen: jax.Array


def coefficient_of_variation() -> Weighting:
    r"""Weights in proportion to the coefficient of variation of each loss's ratios.

    With the ratio of each loss to the mean of its earlier values, and the mean and the
    standard deviation of these ratios, over all steps up to this one,

    .. math::

      l_i(t) = \frac{L_i(t)}{\operatorname{mean}_{s < t} L_i(s)}, \qquad
      w_i(t) = \frac{c_i}{\sum_j c_j}, \quad
      c_i = \frac{\operatorname{std}_{s \le t} l_i(s)}
        {\operatorname{mean}_{s \le t} l_i(s)} .

    A loss that does not change has no weight. The first ratio is 1. A term has an equal
    share of the weights until two of its losses have been seen; so do all terms if no
    loss varies.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; the weights [K]
      sum to 1. State: 3 K numbers and K counts. A negative loss counts by its
      magnitude, and a ratio to a mean of zero as 1. A loss that is not finite is left
      out of the statistics.

    Raises:
      ValueError: Losses are missing.

    Source:
      Groenendijk, Karaoglu, Gevers and Mensink, "Multi-Loss Weighting with Coefficient
      of Variations", WACV 2021.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import coefficient_of_variation
      >>> weighting = coefficient_of_variation()
      >>> state = weighting.init(2)
      >>> for losses in ([4.0, 2.0], [2.0, 1.5]):  # the ratios: 1 and 1/2, 1 and 3/4
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> [round(float(w), 3) for w in weights]  # 1/3 and 1/7
      [0.7, 0.3]
    """

    def init(num_terms: int) -> CoefficientOfVariationState:
        zeros = (jnp.zeros((num_terms,), jnp.result_type(float)) for _ in range(3))
        seen = jnp.zeros((num_terms,), jnp.int32)
        return CoefficientOfVariationState(*zeros, seen=seen)

    def find(
        problem: Problem, state: CoefficientOfVariationState
    ) -> tuple[Weights, CoefficientOfVariationState]:
        finite = jnp.isfinite(problem.losses)
        sizes = jnp.where(finite, jnp.abs(problem.losses), 0)
        seen = jnp.asarray(optax.safe_increment(state.seen))
        share = 1 / seen.astype(sizes.dtype)
        # Welford's updates, of the ratios less 1, to keep the digits of small changes,
        # and of the deviation itself, since its square may overflow.
        mean = jnp.where(state.mean_loss > 0, state.mean_loss, sizes)
        change = (sizes - mean) / jnp.where(mean > 0, mean, 1)
        gap = _losses.bounded(change) - state.mean_change
        spread = _hypotenuse(state.deviation, jnp.sqrt(share) * jnp.abs(gap))
        new = CoefficientOfVariationState(
            mean_loss=state.mean_loss + share * (sizes - state.mean_loss),
            mean_change=state.mean_change + share * gap,
            deviation=jnp.sqrt(1 - share) * spread,
            seen=seen,
        )
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

        known = problem.only_present(new.seen >= 2)
        some = jnp.sum(known.astype(sizes.dtype)) / problem.num_present
        coefficients = jnp.where(known, new.deviation / (1 + new.mean_change), 0)
        among = problem._replace(present=known)
        shares = some * _losses.summing_to(among, coefficients, 1.0)
        weights = jnp.where(known, shares, problem.equal_shares(sizes.dtype))
        return weights.astype(sizes.dtype), new

    return _weighting.method(
        "coefficient_of_variation",
        init,
        find,
        reads_losses=True,
        by_term=CoefficientOfVariationState._fields,
    )


def _hypotenuse(a: jax.Array, b: jax.Array) -> jax.Array:
    """The root of the sum of two squares; unlike jnp.hypot, it never divides 0 by 0."""
    longer = jnp.maximum(a, b)
    ratio = jnp.minimum(a, b) / jnp.where(longer > 0, longer, 1)
    return longer * jnp.sqrt(1 + ratio * ratio)
