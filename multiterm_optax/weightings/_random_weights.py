"""Weights drawn anew in every step, a control for methods that find theirs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting


class RandomWeightsState(NamedTuple):
    """State of :func:`random_weights`.

    Attributes:
      keys: Data of each term's next random key, uint32, a column [:, i] for term i.
    """

    keys: jax.Array


def random_weights(key: jax.Array) -> Weighting:
    r"""Random loss weighting: the softmax of standard normal numbers.

    .. math:: w = \operatorname{softmax}(\lambda), \qquad \lambda_i \sim N(0, 1),

    drawn anew in each step. Their mean is :math:`1 / K`, so the expected step is that
    of equal weights. It is a control: a method that is no better owes nothing to its
    weights.

    Args:
      key: A random key, typed (``jax.random.key``) or raw (``jax.random.PRNGKey``).

    Returns:
      A :class:`multiterm_optax.Weighting` that reads neither gradients nor losses;
      positive weights [K] that sum to 1. State: a key for each term, so that absent
      terms do not change what the others draw.

    Raises:
      TypeError: ``key`` is not one random key.

    Source:
      Lin, Ye, Zhang and Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus
      Test for Multi-Task Learning", TMLR 2022: RLW with the normal distribution. The
      other distributions of the paper, such as Dirichlet(1), are not offered.

    Example:
      >>> import jax
      >>> from multiterm_optax import random_weights
      >>> weighting = random_weights(jax.random.key(0))
      >>> state = weighting.init(3)
      >>> weights, later = weighting.update(None, state)
      >>> round(float(weights.sum()), 6), bool((weights > 0).all())
      (1.0, True)
      >>> again, _ = weighting.update(None, later)
      >>> bool((weights == again).any())
      False
    """
    name = "random_weights"
    data, impl = _checks.prng_key(key, "key", name)

    def init(num_terms: int) -> RandomWeightsState:
        keys = jax.random.split(jax.random.wrap_key_data(data, impl=impl), num_terms)
        return RandomWeightsState(jax.random.key_data(keys).T)

    def find(
        problem: Problem, state: RandomWeightsState
    ) -> tuple[Weights, RandomWeightsState]:
        now = jax.random.wrap_key_data(state.keys.T, impl=impl)
        later, draw = jnp.moveaxis(jax.vmap(jax.random.split)(now), 1, 0)
        # The same numbers whatever the precision: in float64 others would be drawn.
        normals = jax.vmap(lambda one: jax.random.normal(one, dtype=jnp.float32))(draw)
        normals = normals.astype(jnp.result_type(float))
        # Absent terms have no share in the sum.
        highest = problem.largest(normals)
        shares = jnp.exp(normals - jnp.where(problem.any_present, highest, 0))
        shares = problem.only_present(shares)
        total = jnp.sum(shares)
        weights = shares / jnp.where(total > 0, total, 1)
        return weights, RandomWeightsState(jax.random.key_data(later).T)

    return _weighting.method(name, init, find, by_term=("keys",))
