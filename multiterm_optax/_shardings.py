"""Where the leaves [K, *p] lie, as far as their types tell.

Types tell on the explicit axes of a mesh only; for automatic ones nothing does.
"""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from multiterm_optax._typing import TermLeaf


def spec(leaf: Array) -> tuple[Any, ...]:
    """What each axis of a leaf lies over, None for nothing."""
    axes = tuple(jax.typeof(leaf).sharding.spec)
    return axes + (None,) * (leaf.ndim - len(axes))


def sharding(leaf: Array, *axes: Any) -> NamedSharding:
    """A sharding on the leaf's mesh."""
    return NamedSharding(jax.typeof(leaf).sharding.mesh, PartitionSpec(*axes))


def over_devices(leaf: TermLeaf) -> bool:
    """Whether the term axis itself lies over devices."""
    return spec(leaf)[0] is not None


def on_one_device(leaf: TermLeaf) -> TermLeaf:
    """All terms on each device and, where one fits, another axis over the devices.

    Each device then sends and keeps as much as it held, and not K gradients.
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
