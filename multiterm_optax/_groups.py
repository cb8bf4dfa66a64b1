"""Groups, which papers call layers: single leaves, all leaves, or labelled sets.

A method that keeps a statistic for each group sees one pytree with an entry for each:
a tree like the parameters for ``"leaf"``, the bare statistic for ``"global"``, and a
dict by label otherwise.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from multiterm_optax import _checks

Groups = Literal["leaf", "global"] | Any


class Partition(NamedTuple):
    """How the leaves of a tree are divided into groups.

    Attributes:
      members: For each group the indices of its leaves.
      pack: From a list with one entry for each group to one pytree.
      unpack: The inverse of ``pack``.
    """

    members: list[list[int]]
    pack: Callable[[list[Any]], Any]
    unpack: Callable[[Any], list[Any]]


def check_groups(groups: Groups, name: str) -> None:
    """Refuses a string other than ``"leaf"`` and ``"global"``."""
    if isinstance(groups, str) and groups not in ("leaf", "global"):
        raise ValueError(
            f"{name}: groups must be 'leaf', 'global', or labels as optax.partition "
            f"takes them (a tree, a prefix of it, or a function of the parameters), "
            f"found {groups!r}."
        )


def partition(groups: Groups, tree: Any, name: str) -> Partition:
    """Sorts the leaves of ``tree`` into groups."""
    leaves, structure = jax.tree.flatten(tree)
    if isinstance(groups, str) and groups == "leaf":
        return Partition(
            [[i] for i in range(len(leaves))],
            structure.unflatten,
            structure.flatten_up_to,
        )
    if isinstance(groups, str):
        return Partition([list(range(len(leaves)))], lambda one: one[0], lambda x: [x])
    of_leaf, labels = _labels(groups, tree, name)
    return Partition(
        [[i for i, label in enumerate(of_leaf) if label == group] for group in labels],
        lambda values: dict(zip(labels, values, strict=True)),
        lambda by_label: [by_label[label] for label in labels],
    )


def partition_updates(groups: Groups, updates: Any, name: str) -> Partition:
    """Sorts leaves [K, *p]; a function of the parameters sees shapes [*p]."""
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates
    )
    return partition(groups, params, name)


def init_by_group(
    groups: Groups, params: Any, name: str, one_group: Callable[[list[Any]], Any]
) -> Any:
    """Applies ``one_group`` to each group's leaves [*p] and packs the results."""
    leaves = jax.tree.leaves(params)
    parts = partition(groups, params, name)
    return parts.pack(
        [one_group([leaves[i] for i in members]) for members in parts.members]
    )


def update_by_group(
    groups: Groups,
    name: str,
    one_group: Callable[..., tuple[Any, ...]],
    updates: Any,
    packed: tuple[Any, ...],
    *trees: Any,
) -> tuple[Any, ...]:
    """Takes one step of every group.

    Args:
      groups: How the groups are formed.
      name: The function that the user called, for the messages.
      one_group: ``(leaves, *entries, *others) -> (leaves, *entries)``, with a list of
        one group's leaves, its entries of ``packed``, and its leaves of ``trees``.
      updates: Leaves [K, *p], which ``one_group`` replaces.
      packed: What is kept for each group.
      *trees: Further trees with the structure of ``updates``, which are only read.

    Returns:
      The new updates and the new ``packed``, in one tuple.
    """
    parts = partition_updates(groups, updates, name)
    leaves, structure = jax.tree.flatten(updates)
    others = [jax.tree.leaves(tree) for tree in trees]
    columns = [parts.unpack(one) for one in packed]
    for number, members in enumerate(parts.members):
        moved, *entries = one_group(
            [leaves[i] for i in members],
            *(column[number] for column in columns),
            *([other[i] for i in members] for other in others),
        )
        for i, leaf in zip(members, moved, strict=True):
            leaves[i] = leaf
        for column, entry in zip(columns, entries, strict=True):
            column[number] = entry
    return structure.unflatten(leaves), *(parts.pack(column) for column in columns)


def _labels(groups: Any, tree: Any, name: str) -> tuple[list[Any], list[Any]]:
    labels = groups(tree) if callable(groups) else groups
    try:
        names = sorted(set(jax.tree.leaves(labels)))
    except TypeError:
        raise TypeError(
            f"{name}: groups must hold labels of one sort, such as strings, found "
            f"{jax.tree.leaves(labels)!r:.200}."
        ) from None
    if not jax.tree.leaves(tree):  # optax.tree.map_params inspects init without leaves
        return [], names
    full = _checks.for_each_leaf(
        labels, tree, "groups", name, holds="labels", like="updates"
    )
    return jax.tree.leaves(full), names
