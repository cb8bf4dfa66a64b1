"""PCGrad: each gradient loses its components that conflict with the others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Mixing
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _orders, _units


class PCGradState(NamedTuple):
    """State of :func:`pcgrad`.

    Attributes:
      key: Data of the next step's random key, uint32.
    """

    key: jax.Array


def pcgrad(key: jax.Array) -> Weighting:
    r"""Gradient surgery: projects conflicting gradients off each other.

    For each term :math:`i`, over the other terms :math:`j` in a random order, starting
    from :math:`g_i' = g_i`,

    .. math::

      g_i' \leftarrow g_i' - \frac{\min(g_i' \cdot g_j, 0)}{\lVert g_j \rVert^2} g_j

    where the :math:`g_j` are the original gradients. The order is new in each step and
    for each term. Zero gradients are left alone.

    The update is the sum over the terms, as in the paper and in the authors' code: put
    :func:`multiterm_optax.sum_terms` after :func:`multiterm_optax.reweight`.

    Args:
      key: A random key, typed (``jax.random.key``) or raw (``jax.random.PRNGKey``).

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian. Its weights are a
      mixing matrix [K, K] whose row :math:`i` gives :math:`g_i'`, with ones on the
      diagonal and zeros in the rows and columns of absent terms.

    Raises:
      TypeError: ``key`` is not one random key.

    Source:
      Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Alg. 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from multiterm_optax import pcgrad
      >>> weighting = pcgrad(jax.random.key(0))
      >>> gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
      >>> mixing, _ = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> mixing.tolist()
      [[1.0, 0.5], [1.0, 1.0]]
      >>> (mixing @ gradients).tolist()
      [[0.5, 0.5], [0.0, 1.0]]
    """
    data, impl = _checks.prng_key(key, "key", "pcgrad")

    def init(num_terms: int) -> PCGradState:
        del num_terms
        return PCGradState(key=jnp.array(data))  # each group's state has its own copy

    def find(problem: Problem, state: PCGradState) -> tuple[Mixing, PCGradState]:
        orders, later = _orders.draw(state.key, impl, problem.num_terms)
        # Projecting off a zero gradient, such as an absent term's, changes nothing.
        return _projections(problem.gramian, orders), PCGradState(later)

    return _weighting.method("pcgrad", init, find, reads_gramian=True)


def _projections(gramian: Gramian, orders: jax.Array) -> Mixing:
    scaled, units, _ = _units.split(gramian)
    num_terms = gramian.shape[0]
    each = jnp.arange(num_terms)

    # The loop carries the coefficients of the new gradients in the old ones, and their
    # dot products with them, a row for each term. The entry that belongs to each row's
    # next term is masked out, since checkify cannot check a batch of single indices.
    def project(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> Any:
        coefficients, dots = carry
        others = jax.lax.dynamic_index_in_dim(orders, i, axis=1, keepdims=False)
        chosen = others[:, None] == each[None, :]
        conflicts = jnp.minimum(jnp.sum(jnp.where(chosen, dots, 0), axis=1), 0)
        conflicts = jnp.where(others == each, 0, conflicts)
        steps = (conflicts / jnp.diagonal(scaled)[others])[:, None]
        return coefficients - jnp.where(chosen, steps, 0), dots - steps * scaled[others]

    # Made from the gramian: inside shard_map they then differ by device, too.
    zeros, ones = jnp.zeros_like(scaled), jnp.ones_like(scaled)
    start = jnp.where(each[:, None] == each[None, :], ones, zeros), scaled
    coefficients, _ = jax.lax.fori_loop(0, num_terms, project, start)
    ratios = units[:, None] / units[None, :]
    return jnp.where(coefficients == 0, 0, coefficients * ratios)
