"""Krum: the gradients that have the nearest neighbours, and no others."""

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Weights
from multiterm_optax._weighting import Problem, Weighting


def krum(num_byzantine: int, num_selected: int = 1) -> Weighting:
    r"""Selects the gradients that lie nearest to their neighbours.

    With the set :math:`N_i` of the :math:`K - f - 2` other gradients that are nearest
    to :math:`g_i`, the score of a term is

    .. math:: s_i = \sum_{j \in N_i} \lVert g_i - g_j \rVert^2 ,

    and the :math:`m` terms with the lowest scores get the weight :math:`1 / m` each;
    of equal scores the first counts as lower, as in the paper. It is for terms that
    estimate one and the same gradient, such as the losses of several data sources.

    Args:
      num_byzantine: :math:`f`, the number of terms that may be wrong, at most K - 3, or
        0. The paper's guarantee asks for :math:`2f + 2 < K`.
      num_selected: :math:`m`, at most K: 1 for Krum, more for Multi-Krum.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K] that sum
      to 1. It is stateless. K is the number of present terms, but at least one
      neighbour is always counted.

    Raises:
      TypeError: An argument is not a static int.
      ValueError: An argument is out of range.

    Source:
      Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries:
      Byzantine Tolerant Gradient Descent", NeurIPS 2017, section 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import krum
      >>> weighting = krum(num_byzantine=1, num_selected=2)
      >>> gradients = jnp.array([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [-50.0, 9.0]])
      >>> weights, _ = weighting.update(gradients @ gradients.T, weighting.init(4))
      >>> weights.tolist()
      [0.5, 0.5, 0.0, 0.0]
    """
    name = "krum"
    num_byzantine = _checks.static_int(num_byzantine, "num_byzantine", name, low=0)
    num_selected = _checks.static_int(num_selected, "num_selected", name, low=1)

    def init(num_terms: int) -> optax.EmptyState:
        for argument, found, most, limit in (
            ("num_byzantine", num_byzantine, max(num_terms - 3, 0), "K - 3"),
            ("num_selected", num_selected, num_terms, "K"),
        ):
            if found > most:
                raise ValueError(
                    f"{name}: {argument} must be at most {limit}, here {most} for "
                    f"num_terms={num_terms}, found {found}."
                )
        return optax.EmptyState()

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        dtype = problem.gramian.dtype
        number = jnp.asarray(problem.num_present, dtype)
        neighbours = jnp.clip(number - num_byzantine - 2, 1, number - 1)
        distances = _squared_distances(problem.gramian)
        each = jnp.arange(problem.num_terms)
        others = each[:, None] != each[None, :]
        if problem.present is not None:
            others = others & problem.present[None, :]
        nearest = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
        counted = each.astype(dtype)[None, :] < neighbours
        scores = jnp.sum(jnp.where(counted, nearest, 0), axis=1)
        if problem.present is not None:
            scores = jnp.where(problem.present, scores, jnp.inf)
        ranks = jnp.argsort(jnp.argsort(scores, stable=True), stable=True)
        selected = jnp.minimum(number, num_selected)
        return jnp.where(ranks.astype(dtype) < selected, 1 / selected, 0), state

    return _weighting.method(name, init, find, reads_gramian=True)


def _squared_distances(gramian: Gramian) -> Gramian:
    # A power of two makes room at the upper end of the range, for the sums.
    exponent = jnp.frexp(jnp.max(jnp.diagonal(gramian)))[1]
    room = jnp.ldexp(jnp.ones([], gramian.dtype), jnp.minimum(100 - exponent, 0))
    products = room * gramian
    norms = jnp.diagonal(products)
    # Both halves of the mean, so that equal distances are equal to the last bit.
    between = products + products.T
    return jnp.maximum(norms[:, None] + norms[None, :] - between, 0)
