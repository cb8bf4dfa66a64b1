"""Per-term gradients from K gradients that a trainer already has."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax import _words


def stack_terms(trees: Sequence[Any] | Mapping[Any, Any]) -> Any:
    r"""Makes per-term gradients, every leaf [K, \*p], of K ready-made gradients.

    It is for trainers that differentiate each loss by themselves, and for
    ``jax.jacrev(losses_fn)(params)`` where the losses are a dict.

    Args:
      trees: K trees like the parameters, as a list or tuple, or as a dict by the name
        of the term. Those of a dict are sorted by their names, as JAX sorts the losses.

    Returns:
      One tree like the parameters, whose leaves have the term axis in front.

    Raises:
      TypeError: ``trees`` is neither a sequence nor a dict.
      ValueError: There are none, or they differ in structure or shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import stack_terms
      >>> fit, smooth = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])}
      >>> stack_terms({"smooth": smooth, "fit": fit})["w"].tolist()
      [[1.0, 2.0], [3.0, 4.0]]
    """
    name = "stack_terms"
    if isinstance(trees, Mapping):
        named = {str(key): trees[key] for key in sorted(trees)}
    elif isinstance(trees, list | tuple):
        named = {f"{i}": tree for i, tree in enumerate(trees)}
    else:
        raise TypeError(
            f"{name}: trees must be a list, a tuple or a dict of K gradients, found "
            f"{_words.describe(trees)}."
        )
    if not named:
        raise ValueError(f"{name}: trees must hold at least one gradient, found none.")
    (first_name, first), *others = named.items()
    for other_name, other in others:
        if jax.tree.structure(other) != jax.tree.structure(first):
            raise ValueError(
                f"{name}: trees[{other_name}] must have the tree structure of "
                f"trees[{first_name}], {_words.difference(other, first)}."
            )
        leaves = jax.tree_util.tree_leaves_with_path(other)
        for (path, leaf), like in zip(leaves, jax.tree.leaves(first), strict=True):
            if jnp.shape(leaf) != jnp.shape(like):
                raise ValueError(
                    f"{name}: trees[{other_name}]{keystr(path)} must have the shape "
                    f"{jnp.shape(like)} that it has in trees[{first_name}], found "
                    f"{jnp.shape(leaf)}."
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *named.values())
