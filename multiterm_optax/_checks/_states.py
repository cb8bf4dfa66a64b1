"""Compares a state with the one that its transformation would make."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax import _words


def state(
    found: Any,
    init: Callable[[Any], Any],
    updates: Any,
    name: str,
    *,
    inner: str | None = None,
) -> None:
    """Refuses a state that ``init`` would not make for the parameters of ``updates``.

    The state of another optimizer, or one from a checkpoint with another number of
    terms, would otherwise be broadcast silently. The field ``inner``, which holds the
    state of an inner transformation, is not checked.
    """
    expected = jax.eval_shape(
        init,
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates
        ),
    )
    origin = "as init or the last update returned it"
    if type(found) is not type(expected):
        raise TypeError(
            f"{name}: state must be a {type(expected).__name__}, {origin}, found "
            f"{type(found).__name__}. Was it made by another transformation?"
        )
    if inner is not None:
        hidden = {inner: None}
        found, expected = found._replace(**hidden), expected._replace(**hidden)
    if jax.tree.structure(found) != jax.tree.structure(expected):
        raise ValueError(
            f"{name}: state must be {origin}, made with the same options for the same "
            f"parameters, {_words.difference(found, expected)}."
        )
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, leaf), one in zip(leaves, jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != one.shape:
            raise ValueError(
                f"{name}: state{keystr(path)} must have shape {one.shape}, found shape "
                f"{jnp.shape(leaf)}: it was made for another number of terms or other "
                f"parameters, or {_words.MISSING}"
            )


def state_by_term(found: Any, name: str, num_terms: int) -> None:
    """Refuses a state whose leaves are not [K, ...]."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        if jnp.shape(leaf)[:1] != (num_terms,):
            raise ValueError(
                f"{name}: state{keystr(path)} must have the term axis first, as init "
                f"made it for num_terms={num_terms}, found shape {jnp.shape(leaf)}: it "
                "was made for another number of terms or by another transformation."
            )


def state_keeps_shapes(old: Any, new: Any, who: str) -> None:
    """Refuses an ordinary transformation that got updates with the term axis.

    Such a state grows from [*p] to [K, *p], because elementwise arithmetic broadcasts
    silently.
    """
    found = dict(jax.tree_util.tree_leaves_with_path(new))
    for path, leaf in jax.tree_util.tree_leaves_with_path(old):
        shape = getattr(leaf, "shape", ())
        grown = getattr(found.get(path, leaf), "shape", ())
        if grown != shape and grown[1:] == shape:
            raise ValueError(
                f"{who} was initialised for updates without the term axis, but gets "
                f"updates with it: its state{keystr(path)} would change its shape from "
                f"{shape} to {grown}. {_words.AGGREGATOR} belongs before it, or "
                "per_term(..., num_terms) around it."
            )
