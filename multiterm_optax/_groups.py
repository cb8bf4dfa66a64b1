"""Groups: what papers call layers. One leaf each, all leaves, or labelled sets.

A method that keeps a statistic for each group sees one pytree whose entries
stand for groups, whichever way the user formed them.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax

Groups = Literal["leaf", "global"] | Any

_ALL = "global"


def check_groups(groups: Groups, name: str) -> None:
    """Refuses a string that names no way of forming groups."""
    if isinstance(groups, str) and groups not in ("leaf", "global"):
        raise ValueError(
            f"{name}: groups must be 'leaf', 'global', or labels as optax.partition "
            f"takes them (a tree, a prefix of it, or a function of the parameters), "
            f"found {groups!r}."
        )


def init_per_group(
    groups: Groups, params: Any, make: Callable[[Any], jax.Array], dtype_of: Callable
) -> Any:
    """One array for each group: a tree like ``params``, or a dict by label."""
    if isinstance(groups, str) and groups == "leaf":
        return jax.tree.map(lambda p: make(dtype_of(p)), params)
    dtype = dtype_of(*jax.tree.leaves(params))
    if isinstance(groups, str):
        return {_ALL: make(dtype)}
    labels = groups(params) if callable(groups) else groups
    return {label: make(dtype) for label in sorted(set(jax.tree.leaves(labels)))}


def sum_by_group(groups: Groups, per_leaf: Any, name: str) -> Any:
    """Adds up statistics of leaves into statistics of groups."""
    if isinstance(groups, str) and groups == "leaf":
        return per_leaf
    totals: dict[Any, jax.Array] = {}
    for label, value in zip(
        _leaf_labels(groups, per_leaf, name), jax.tree.leaves(per_leaf), strict=True
    ):
        totals[label] = totals[label] + value if label in totals else value
    return totals


def map_by_group(
    f: Callable[[Any, jax.Array], jax.Array],
    groups: Groups,
    per_group: Any,
    updates: Any,
    name: str,
) -> Any:
    """Applies ``f(statistic of the leaf's group, leaf)`` to every leaf."""
    if isinstance(groups, str) and groups == "leaf":
        return jax.tree.map(f, per_group, updates)
    leaves, structure = jax.tree.flatten(updates)
    labels = _leaf_labels(groups, updates, name)
    return structure.unflatten(
        [f(per_group[label], leaf) for label, leaf in zip(labels, leaves, strict=True)]
    )


def _leaf_labels(groups: Groups, tree: Any, name: str) -> list[Any]:
    if isinstance(groups, str):
        return [_ALL] * len(jax.tree.leaves(tree))
    labels = groups(tree) if callable(groups) else groups
    try:
        full = jax.tree.map(
            lambda label, part: jax.tree.map(lambda _: label, part), labels, tree
        )
    except ValueError as error:
        raise ValueError(
            f"{name}: groups must be a tree of labels with the structure of the "
            f"updates, {jax.tree.structure(tree)}, or a prefix of it, found "
            f"{jax.tree.structure(labels)}."
        ) from error
    return jax.tree.leaves(full)

