"""Gradient Vaccine: raises the cosines of the gradients to their usual values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Mixing, Scalar
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _orders, _units


class GradVacState(NamedTuple):
    """State of :func:`grad_vac`.

    Attributes:
      targets: Moving averages of the cosines [K, K], row i for the changes of term i.
      key: Data of the next step's random key, uint32; None if the order is fixed.
    """

    targets: jax.Array
    key: jax.Array | None


class _Carry(NamedTuple):
    coefficients: Float[Array, "K K"]  # of the new gradients in the old ones
    dots: Float[Array, "K K"]  # of the new gradients with the old ones
    targets: Float[Array, "K K"]


def grad_vac(key: jax.Array | None = None, decay: Scalar = 0.01) -> Weighting:
    r"""Gradient Vaccine: adds to each gradient until its cosines reach their targets.

    For each term :math:`i`, over the other terms :math:`j`, starting from
    :math:`g_i' = g_i`, with :math:`c = \cos(g_i', g_j)`: where :math:`c < t_{ij}`

    .. math::

      g_i' \leftarrow g_i' + \frac{\lVert g_i' \rVert}{\lVert g_j \rVert}
      \frac{t_{ij} \sqrt{1 - c^2} - c \sqrt{1 - t_{ij}^2}}{\sqrt{1 - t_{ij}^2}} \, g_j ,

    which makes the cosine :math:`t_{ij}`; then, changed or not,
    :math:`t_{ij} \leftarrow (1 - \beta) t_{ij} + \beta c`, from 0. With targets of 0
    (at first, or always if ``decay=0``) this is :func:`multiterm_optax.pcgrad`, draw by
    draw. As there, the update is the sum over the terms.

    Args:
      key: A random key, for a new order in each step. ``None``: the order of the terms.
      decay: :math:`\beta`, the share of the newest cosine in its target, in [0, 1).

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; a mixing matrix whose
      row :math:`i` gives :math:`g_i'`. Targets of absent and of zero gradients stay.

    Raises:
      TypeError: ``key`` is neither None nor one random key.
      ValueError: ``decay`` is out of range.

    Source:
      Wang, Tsvetkov, Firat and Cao, "Gradient Vaccine: Investigating and Improving
      Multi-task Optimization in Massively Multilingual Models", ICLR 2021, Alg. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import grad_vac
      >>> weighting = grad_vac()
      >>> gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> mixing, _ = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> mixing.round(6).tolist()
      [[1.0, 0.5], [1.0, 1.0]]
    """
    name = "grad_vac"
    data, impl = (None, None) if key is None else _checks.prng_key(key, "key", name)
    _checks.decay(decay, "decay", name)

    def init(num_terms: int) -> GradVacState:
        targets = jnp.zeros((num_terms, num_terms), jnp.result_type(float))
        return GradVacState(targets, None if data is None else jnp.array(data))

    def find(problem: Problem, state: GradVacState) -> tuple[Mixing, GradVacState]:
        num_terms, later = problem.num_terms, state.key
        if later is None:
            orders = jnp.tile(jnp.arange(num_terms), (num_terms, 1))
        else:
            orders, later = _orders.draw(later, impl, num_terms)
        mixing, targets = _vaccinate(problem.gramian, state.targets, orders, decay)
        return mixing, GradVacState(targets.astype(state.targets.dtype), later)

    return _weighting.method(name, init, find, reads_gramian=True, by_term=("targets",))


def _vaccinate(
    gramian: Gramian, targets: Mixing, orders: Int[Array, "K K"], decay: Scalar
) -> tuple[Mixing, Mixing]:
    scaled, units, silent = _units.split(gramian)
    eps, most = float(jnp.finfo(scaled.dtype).eps), jnp.finfo(scaled.dtype).max
    each = jnp.arange(len(units))
    lengths = jnp.sqrt(jnp.diagonal(scaled))
    share = jnp.asarray(decay, scaled.dtype)

    # Row by row, each with the next term of its own order.
    def change(step: jax.Array, carry: _Carry) -> _Carry:
        coefficients, dots, targets = carry
        others = jax.lax.dynamic_index_in_dim(orders, step, axis=1, keepdims=False)
        chosen = others[:, None] == each[None, :]

        def pick(rows: Mixing) -> Any:
            return jnp.sum(jnp.where(chosen, rows, 0), axis=1)

        own = jnp.sum(coefficients * dots, axis=1)
        size = jnp.sum(jnp.abs(coefficients), axis=1)
        # A gradient that is only rounding has no direction. Also, near targets of 1 a
        # gradient grows with every pair, until the next square would overflow.
        there = (own > 4 * len(units) * eps * size * size) & (size < most**0.4)
        there = there & ~silent & ~silent[others] & (others != each)
        norms = jnp.sqrt(jnp.where(there, own, 1))
        cosines = jnp.clip(pick(dots) / (norms * lengths[others]), -1, 1)
        wanted = pick(targets)
        ratio = _sine(cosines) / jnp.maximum(_sine(wanted), eps**0.5)
        steps = norms / lengths[others] * (wanted * ratio - cosines)
        steps = jnp.where(there & (cosines < wanted), steps, 0)[:, None]
        moved = wanted + share * (cosines - wanted)
        return _Carry(
            coefficients + jnp.where(chosen, steps, 0),
            dots + steps * scaled[others],
            jnp.where(chosen & there[:, None], moved[:, None], targets),
        )

    # Made from the gramian: inside shard_map they then differ by device, too.
    zeros, ones = jnp.zeros_like(scaled), jnp.ones_like(scaled)
    start = _Carry(
        jnp.where(each[:, None] == each[None, :], ones, zeros),
        scaled,
        targets.astype(scaled.dtype) + zeros,
    )
    end = jax.lax.fori_loop(0, len(units), change, start)
    ratios = units[:, None] / units[None, :]
    mixing = jnp.where(end.coefficients == 0, 0, end.coefficients * ratios)
    return mixing, end.targets


def _sine(cosines: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum((1 - cosines) * (1 + cosines), 0))
