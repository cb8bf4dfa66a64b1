"""Per-term gradients of further batches, which come as extra arguments."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax import _terms, _words
from multiterm_optax._stages import Step


def grads_of(step: Step, argument: str, name: str) -> Any:
    """The gradients under this name, with zeros for absent terms; None if not given."""
    grads = step.extra_args.get(argument)
    if grads is None:
        return None
    if jax.tree.structure(grads) != jax.tree.structure(step.updates):
        raise ValueError(
            f"{name}: {argument} must have the tree structure of the updates, "
            f"{_words.difference(grads, step.updates)}."
        )
    expected = jax.tree.leaves(step.updates)
    found = jax.tree_util.tree_leaves_with_path(grads)
    for (path, leaf), update in zip(found, expected, strict=True):
        if jnp.shape(leaf) != update.shape:
            raise ValueError(
                f"{name}: {argument}{keystr(path)} must have the shape of the updates, "
                f"{update.shape}, found shape {jnp.shape(leaf)}."
            )
    return jax.tree.map(partial(_terms.only_present, step.present), grads)
