"""Signs that the weights follow one term at the expense of the others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multiterm_optax import _checks, _named
from multiterm_optax._typing import Scalar


class Warnings(NamedTuple):
    """What :func:`warnings` returns.

    Attributes:
      large_weight: Which terms have a weight far above that of the others [K].
      small_loss: Which terms have a loss far below that of the others [K]; None where
        no losses were given.
    """

    large_weight: jax.Array
    small_loss: jax.Array | None


def warnings(weights: Any, losses: Any = None, *, ratio: Scalar = 100.0) -> Warnings:
    r"""Says which terms have a weight, or a loss, out of proportion.

    With :math:`r` the ratio and the median over the other terms that are not zero,

    .. math::

      |w_i| > r \, \operatorname{median}_{j \ne i} |w_j| , \qquad
      r \, |L_i| < \operatorname{median}_{j \ne i} |L_j| .

    If both hold at once, a method multiplies a loss that is at its floor, and mostly
    noise, by a weight in the hundreds.

    Args:
      weights: Weights [K], as found in a state; a pytree like the losses; or a mixing
        matrix [K, K], whose column sums count.
      losses: The losses, an array [K] or a pytree of K scalars. Losses in units that
        are far apart are best divided by their first values.
      ratio: :math:`r`, at least 1.

    Returns:
      A :class:`Warnings` of booleans [K]. A weight that is not finite counts as large.

    Raises:
      ValueError: ``ratio`` is out of range, or a shape does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> losses = {"bcs": 1e-6, "res": 0.5, "ics": 0.2}
      >>> found = metrics.warnings(jnp.array([900.0, 1.5, 1.0]), losses)
      >>> found.large_weight.tolist(), found.small_loss.tolist()
      ([True, False, False], [True, False, False])
    """
    name = "metrics.warnings"
    _checks.in_range(ratio, "ratio", name, low=1.0, open_high=True)
    with _named.seen(losses):
        array = jnp.asarray(_named.by_name(weights, "weights", name))
    if array.ndim == 2:
        array = jnp.sum(array, axis=0)
    if array.ndim != 1:
        raise ValueError(
            f"{name}: weights must have shape [K] or [K, K], found {array.shape}."
        )
    sizes = jnp.abs(array)
    large = sizes / ratio > _median_of_others(sizes, jnp.inf)
    large = large | ~jnp.isfinite(array)
    if losses is None:
        return Warnings(large, None)
    values: Any = _checks.losses(losses, name, len(array))
    sizes = jnp.abs(values)
    return Warnings(large, sizes * ratio < _median_of_others(sizes, 0.0))


def _median_of_others(sizes: Float[Array, " K"], without: float) -> Float[Array, " K"]:
    """For each term the median of the others that are positive and finite."""
    num_terms = len(sizes)
    counts: Bool[Array, " K"] = (sizes > 0) & jnp.isfinite(sizes)
    among = counts[None, :] & ~jnp.eye(num_terms, dtype=bool)
    rows = jnp.sort(jnp.where(among, sizes[None, :], jnp.inf), axis=1)
    number = jnp.sum(among, axis=1, keepdims=True)
    last = jnp.maximum(number - 1, 0)
    middle = [
        jnp.take_along_axis(rows, i, axis=1) for i in (last // 2, (last + 1) // 2)
    ]
    median = middle[0] / 2 + middle[1] / 2
    return jnp.where(number > 0, median, without)[:, 0]
