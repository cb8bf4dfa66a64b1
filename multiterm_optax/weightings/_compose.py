"""Several weightings, applied one after another, as one weighting."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp

from multiterm_optax import _weighting
from multiterm_optax._typing import Gramian, Mixing, Norms, Weights
from multiterm_optax._weighting import Problem, Weighting


class ComposeState(NamedTuple):
    """State of :func:`compose`: the states of the weightings, in their order."""

    parts: tuple[Any, ...]


def compose(*weightings: Weighting) -> Weighting:
    r"""Applies weightings one after another, each to the result of the one before it.

    Let :math:`W_1` be the weights of the first as a diagonal matrix, or its mixing
    matrix. The second is given :math:`W_1 G W_1^T` and :math:`W_1 L` in place of the
    gramian and the losses, and so on. The result is :math:`\cdots W_2 W_1`. A chain of
    :func:`multiterm_optax.reweight` stages has the same effect on the gradients. Here,
    however, they are read only once, and the composition can be used wherever a
    weighting can, including :func:`multiterm_optax.value_and_weighted_grad`.

    Args:
      *weightings: Weightings in the order in which they act.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads what its parts read. Its weights
      are [K], or a matrix [K, K] if a part mixes the terms. The step is skipped if a
      part asks for it.

    Raises:
      TypeError: An argument is not a weighting.
      ValueError: There are no weightings, or one that reads norms follows one that
        mixes the terms without reading the gramian, so that the norms are not known.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import by_norm, compose, mgda
      >>> weighting = compose(by_norm(), mgda())  # MGDA of gradients of one length
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 1000.0]])
      >>> weights, _ = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights]
      [0.5, 0.0005]
    """
    name = "compose"
    if not weightings:
        raise ValueError(f"{name}: weightings must hold at least one, found ().")
    for i, one in enumerate(weightings):
        _weighting.check(one, name, f"weightings[{i}]")

    def init(num_terms: int) -> ComposeState:
        return ComposeState(tuple(one.init(num_terms) for one in weightings))

    def find(
        problem: Problem, state: ComposeState
    ) -> tuple[Weights | Mixing, ComposeState]:
        products = problem.gramian
        if products is None:
            products = problem.squared_norms
        losses = problem.losses
        total: Any = None
        parts = []
        for i, one in enumerate(weightings):
            weights, part = _weighting.weights_from(
                one,
                _read(one, products, f"{name}: weightings[{i}]"),
                state.parts[i],
                losses if one.reads_losses else None,
                problem.present,
                **problem.extra_args,
            )
            products, losses = _weighted(weights, products, losses)
            total = weights if total is None else _product(weights, total)
            parts.append(part)
        return total, ComposeState(tuple(parts))

    names = [_weighting.extra_arguments(one) for one in weightings]
    return _weighting.method(
        name,
        init,
        find,
        reads_gramian=any(one.reads_gramian for one in weightings),
        reads_norms=any(one.reads_norms for one in weightings),
        reads_losses=any(one.reads_losses for one in weightings),
        extra_args=tuple(dict.fromkeys(itertools.chain(*names))),
    )


def _read(weighting: Weighting, products: Any, who: str) -> Gramian | Norms | None:
    """What a weighting reads of the gramian, or of the squared norms."""
    if weighting.reads_gramian:
        return products
    if not weighting.reads_norms:
        return None
    if products is None:
        raise ValueError(
            f"{who} reads the norms of the gradients, but one before it mixes the "
            "terms without reading the gramian, so that the norms are not known."
        )
    return products if products.ndim == 1 else jnp.diagonal(products)


def _weighted(weights: Any, products: Any, losses: Any) -> tuple[Any, Any]:
    """Gramian or squared norms, and losses, of the weighted or mixed terms."""
    if weights.ndim == 1:
        # A term of weight 0 plays no further part, even if its loss is infinite.
        if losses is not None:
            losses = jnp.where(weights == 0, 0, weights * losses)
        if products is not None and products.ndim == 1:
            products = weights * (weights * products)
        elif products is not None:
            products = weights[:, None] * products * weights[None, :]
        return products, losses
    if losses is not None:
        losses = jnp.matmul(weights, losses, precision="highest")
    if products is None or products.ndim == 1:
        return None, losses
    half = jnp.matmul(weights, products, precision="highest")
    return jnp.matmul(half, weights.T, precision="highest"), losses


def _product(later: Any, earlier: Any) -> Weights | Mixing:
    """The product of two vectors of weights or mixing matrices."""
    if later.ndim == earlier.ndim == 2:
        return jnp.matmul(later, earlier, precision="highest")
    if later.ndim == 2:
        return later * earlier[None, :]
    return later * earlier if earlier.ndim == 1 else later[:, None] * earlier
