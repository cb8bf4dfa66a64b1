"""PCGrad: each gradient gives up what conflicts with the others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Mixing
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _units


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

    where the :math:`g_j` are the gradients as they came. The result is a mixing matrix
    whose row :math:`i` makes :math:`g_i'`; it is computed from the gramian alone, in
    :math:`O(K^3)`, on gradients of unit length, so that it stays as it is when all
    gradients are multiplied by a constant. Zero gradients are left alone.

    The sum over terms is the update, as in the paper and in the authors' code: after
    :func:`multiterm_optax.reweight` comes :func:`multiterm_optax.sum_terms`. Some
    codes take the mean, which is a K times smaller learning rate.

    The order is new at each step and for each term: ``key, draw = split(key)``, then
    ``permutation(draw, [[0 .. K-1]] * K, axis=1, independent=True)`` (all of
    :mod:`jax.random`). Groups share the draws. With two terms the order is irrelevant;
    with more, permuting the terms permutes the distribution of the result, not each
    draw. Absent terms drop out of the orders, and each order of the others stays as
    likely as any.

    Args:
      key: A random key, typed (``jax.random.key``) or raw (``jax.random.PRNGKey``).

    Returns:
      A :class:`multiterm_optax.Weighting` whose weights are a matrix [K, K] with ones
      on the diagonal (and zeros in the rows and columns of absent terms). It reads the
      gramian.

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
        now = jax.random.wrap_key_data(state.key, impl=impl)
        later, draw = jax.random.split(now)
        each = jnp.arange(problem.num_terms)
        orders = jax.random.permutation(
            draw, jnp.tile(each, (len(each), 1)), axis=1, independent=True
        )
        # Projections off a zero gradient, an absent term's too, change nothing.
        mixing = _projections(problem.gramian, orders)
        return mixing, PCGradState(jax.random.key_data(later))

    return _weighting.method("pcgrad", init, find, reads_gramian=True)


def _projections(gramian: Gramian, orders: jax.Array) -> Mixing:
    scaled, units, _ = _units.split(gramian)
    num_terms = gramian.shape[0]

    def one_term(term: jax.Array, order: jax.Array) -> jax.Array:
        # Along the way: the new gradient's coefficients in the old ones, and its dot
        # products with them.
        def project(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> Any:
            coefficients, dots = carry
            other = order[i]
            conflict = jnp.where(other == term, 0, jnp.minimum(dots[other], 0))
            step = conflict / scaled[other, other]
            return coefficients.at[other].add(-step), dots - step * scaled[other]

        start = jnp.zeros_like(scaled[0]).at[term].set(1), scaled[term]
        return jax.lax.fori_loop(0, num_terms, project, start)[0]

    coefficients = jax.vmap(one_term)(jnp.arange(num_terms), orders)
    ratios = units[:, None] / units[None, :]
    return jnp.where(coefficients == 0, 0, coefficients * ratios)
