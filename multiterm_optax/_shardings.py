"""How the leaves [K, *p] are sharded, as far as their types say.

Types show the explicit axes of a mesh only; the automatic ones cannot be seen.
"""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from multiterm_optax._typing import TermLeaf


def spec(leaf: Array) -> tuple[Any, ...]:
    """The mesh axes that each axis of a leaf is sharded over, or None."""
    axes = tuple(jax.typeof(leaf).sharding.spec)
    return axes + (None,) * (leaf.ndim - len(axes))


def sharding(leaf: Array, *axes: Any) -> NamedSharding:
    """A sharding on the leaf's mesh."""
    return NamedSharding(jax.typeof(leaf).sharding.mesh, PartitionSpec(*axes))


def over_devices(leaf: TermLeaf) -> bool:
    """Whether the term axis itself is sharded."""
    return spec(leaf)[0] is not None


def on_one_device(leaf: TermLeaf) -> TermLeaf:
    """Puts all terms on each device and, if one fits, shards another axis instead.

    Each device then sends and keeps as much as it held before, not K gradients.
    """
    if not over_devices(leaf):
        return leaf
    names, *rest = spec(leaf)
    held = (names,) if isinstance(names, str) else names
    sizes = jax.typeof(leaf).sharding.mesh.shape
    devices = math.prod(sizes[name] for name in held)
    for axis, taken in enumerate(rest):
        if taken is None and leaf.shape[1 + axis] % devices == 0:
            rest[axis] = names
            break
    return jax.sharding.reshard(leaf, sharding(leaf, None, *rest))


def terms_as(updates: Any, state: Any) -> Any:
    """Spreads the terms of a state over devices as those of the updates."""
    leaves = [leaf for leaf in jax.tree.leaves(updates) if over_devices(leaf)]
    if not leaves:
        return state
    names, *_ = spec(leaves[0])

    def spread(leaf: Array) -> Array:
        return jax.sharding.reshard(leaf, sharding(leaves[0], names, *spec(leaf)[1:]))

    return jax.tree.map(spread, state)
