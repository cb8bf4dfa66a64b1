"""Causal weights: a time chunk counts once the chunks before it are fitted."""

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


def causal(tol: Scalar = 1.0) -> Weighting:
    r"""Causal training: each term waits for the losses of those before it to fall.

    .. math:: w_k = \exp \Bigl( -\epsilon \sum_{j < k} L_j \Bigr)

    The terms are the losses of one equation on successive chunks of time, and their
    order is that of time. In an array, a list or a tuple, it is the order of the
    indices. A dict is sorted by its keys, as everywhere in JAX, so choose names that
    sort in this order, such as ``"t00"``, ``"t01"``.

    Args:
      tol: :math:`\epsilon`, the causality parameter, not negative. 0 gives weights of
        1; the larger it is, the nearer to zero the earlier losses must be.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; weights [K] in
      (0, 1], with no state. The first term has the weight 1. A negative loss counts by
      its magnitude. After a loss that is infinite, the weights are 0; after one that
      is NaN, they are NaN.

    Raises:
      ValueError: ``tol`` is negative, or losses are missing.

    Source:
      Wang, Sankaran and Perdikaris, "Respecting causality is all you need for training
      physics-informed neural networks", 2022.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import causal
      >>> weighting = causal()
      >>> losses = jnp.array([0.5, 1.0, 2.0])
      >>> weights, _ = weighting.update(None, weighting.init(3), losses=losses)
      >>> [round(float(w), 4) for w in weights]  # the exponents are 0, -1/2, -3/2
      [1.0, 0.6065, 0.2231]
    """
    name = "causal"
    _checks.non_negative(tol, "tol", name)

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        sizes = jnp.abs(problem.losses)
        # These are sums of the earlier losses only: subtracting each loss from a sum
        # that includes it would lose small losses beside large ones.
        before = jnp.concatenate([jnp.zeros_like(sizes[:1]), jnp.cumsum(sizes)[:-1]])
        return jnp.exp(-tol * _losses.bounded(before)).astype(sizes.dtype), state

    return _weighting.method(name, _weighting.stateless, find, reads_losses=True)
