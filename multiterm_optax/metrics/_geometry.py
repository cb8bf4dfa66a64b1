"""Norms of the terms' gradients and angles between them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiterm_optax import _checks, _products, _terms
from multiterm_optax._typing import Gramian, Norms


def gramian(grads: Any) -> Gramian:
    r"""Inner products of the terms' gradients, :math:`G_{ij} = g_i \cdot g_j`.

    Args:
      grads: Per-term gradients, every leaf [K, \*p].

    Returns:
      [K, K], in at least float32, over all leaves together.

    Raises:
      ValueError: A leaf has no term axis, or not the same K as the others.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> metrics.gramian({"w": jnp.array([[1.0, 1.0], [2.0, 0.0]])}).tolist()
      [[2.0, 2.0], [2.0, 4.0]]
    """
    leaves = _term_leaves(grads, "metrics.gramian")
    return _products.gramian(*leaves, num_terms=leaves[0].shape[0])


def norms(grads: Any) -> Norms:
    r"""Norms of the terms' gradients, :math:`\lVert g_i \rVert_2`.

    Args:
      grads: Per-term gradients, every leaf [K, \*p].

    Returns:
      [K], in at least float32, over all leaves together.

    Raises:
      ValueError: A leaf has no term axis, or not the same K as the others.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> metrics.norms({"w": jnp.array([[3.0, 4.0], [0.0, 2.0]])}).tolist()
      [5.0, 2.0]
    """
    leaves = _term_leaves(grads, "metrics.norms")
    return _terms.root(_products.squared_norms(*leaves, num_terms=len(leaves[0])))


def cosines(grads: Any) -> Float[Array, "K K"]:
    r"""Cosines of the angles between gradients, :math:`G_{ij} / (n_i n_j)`.

    Args:
      grads: Per-term gradients, every leaf [K, \*p].

    Returns:
      [K, K], in [-1, 1], symmetric; 0 where a gradient is zero.

    Raises:
      ValueError: A leaf has no term axis, or not the same K as the others.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> metrics.cosines({"w": jnp.array([[3.0, 4.0], [-6.0, -8.0]])}).tolist()
      [[1.0, -1.0], [-1.0, 1.0]]
    """
    products = gramian(grads)
    lengths = _terms.root(jnp.diagonal(products))
    safe = jnp.where(lengths > 0, lengths, 1)
    return jnp.clip(products / safe[:, None] / safe[None, :], -1, 1)


def conflicts(grads: Any) -> Float[Array, ""]:
    r"""Share of the pairs of terms whose gradients have a negative cosine.

    Args:
      grads: Per-term gradients, every leaf [K, \*p].

    Returns:
      A number in [0, 1]; 0 for one term.

    Raises:
      ValueError: A leaf has no term axis, or not the same K as the others.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
      >>> round(float(metrics.conflicts(grads)), 3)  # the first and the third
      0.333
    """
    products = gramian(grads)
    num_terms = products.shape[0]
    upper = jnp.triu(jnp.ones_like(products), 1)
    pairs = max(num_terms * (num_terms - 1) // 2, 1)
    return jnp.sum(jnp.where(products < 0, upper, 0)) / pairs


def alignment(grads: Any) -> Float[Array, ""]:
    r"""How well the gradients agree, as one number.

    .. math::

      2 \Bigl\lVert \frac{1}{K} \sum_i \frac{g_i}{\lVert g_i \rVert}
      \Bigr\rVert^2 - 1

    It is 1 if all gradients point in one direction, 0 for two orthogonal gradients and
    -1 for two opposed ones. For K orthogonal gradients it is 2 / K - 1. A zero gradient
    counts as a term without a direction.

    Args:
      grads: Per-term gradients, every leaf [K, \*p].

    Returns:
      A number in [-1, 1].

    Raises:
      ValueError: A leaf has no term axis, or not the same K as the others.

    Source:
      Wang et al., "Gradient Alignment in Physics-informed Neural Networks: A
      Second-Order Optimization Perspective", NeurIPS 2025.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 5.0]])
      >>> round(float(metrics.alignment(grads)), 6)
      0.0
    """
    return 2 * jnp.mean(cosines(grads)) - 1


def _term_leaves(grads: Any, name: str) -> list[jax.Array]:
    leaves = jax.tree.leaves(grads)
    if not leaves:
        raise ValueError(f"{name}: grads must have at least one leaf, found none.")
    num_terms = leaves[0].shape[0] if jnp.ndim(leaves[0]) else None
    _checks.term_axis(grads, None, name, num_terms)
    return leaves
