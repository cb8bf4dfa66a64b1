"""GLS: the weights of the geometric mean of the losses."""

import jax.numpy as jnp
import optax

from multiterm_optax import _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _sizes


def geometric_mean() -> Weighting:
    r"""Descends the geometric mean of the losses, :math:`(\prod_j L_j)^{1/K}`.

    .. math:: w_i = \frac{1}{K L_i} \Bigl( \prod_j L_j \Bigr)^{1/K}

    These are its derivatives: :math:`w_i L_i` is the same for all terms, so that each
    counts by the share of its loss that a step removes. Multiplying a loss by a
    constant changes the weights by one common factor.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; weights [K],
      positive, with no state. A negative loss counts by its magnitude. A loss that is
      zero or not finite is left out of the mean, and its term has the weight
      :math:`1/K`.

    Raises:
      ValueError: Losses are missing.

    Source:
      Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric
      Loss Strategy for Multi-Task Learning", CVPR workshops, 2019.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import geometric_mean
      >>> weighting = geometric_mean()
      >>> losses = jnp.array([1.0, 100.0])
      >>> weights, _ = weighting.update(None, weighting.init(2), losses=losses)
      >>> [round(float(w), 4) for w in weights]  # 10 / (2 L)
      [5.0, 0.05]
    """

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        finite = jnp.isfinite(problem.losses)
        sizes = jnp.where(finite, jnp.abs(problem.losses), 0)
        return _sizes.inverse(problem, sizes) / problem.num_present, state

    return _weighting.method(
        "geometric_mean", _weighting.stateless, find, reads_losses=True
    )
