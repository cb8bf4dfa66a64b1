"""Reads a statistic out of any optimizer's state."""

from typing import Any

import jax.tree_util as jtu
import optax


def read(state: optax.OptState, field: str) -> dict[str, Any]:
    """Returns every field of a given name in a state, by its path.

    :func:`optax.tree.get` reads a field that occurs once, and fails if two stages of a
    chain have a field of the same name. This function returns all of them.

    Args:
      state: The state of any transformation.
      field: Name of a field, such as ``"weights"``, ``"norms"``, ``"skipped"``,
        ``"ready"`` or ``"converged"``.

    Returns:
      The values by path, in the order of the stages.

    Raises:
      KeyError: The state has no such field.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import equal, metrics, mgda, reweight
      >>> tx = optax.chain(reweight(mgda(), 2), reweight(equal(), 2))
      >>> for path, weights in metrics.read(tx.init(jnp.zeros(3)), "weights").items():
      ...     print(path, weights)
      [0].weights [1. 1.]
      [1].weights [1. 1.]
    """
    found = optax.tree.get_all_with_path(state, field)
    if not found:
        fields = ", ".join(_fields(state)) or "none"
        raise KeyError(
            f"metrics.read: field {field!r} must be in the state, found {fields}."
        )
    return {_path(path): value for path, value in found}


def _fields(state: optax.OptState) -> list[str]:
    """The names of all fields that hold something, sorted."""
    paths = jtu.tree_leaves_with_path(state)
    keys = (key for path, _ in paths for key in path)
    return sorted({key.name for key in keys if isinstance(key, jtu.GetAttrKey)})


def _path(path: Any) -> str:
    fields = (
        f".{key.name}" if hasattr(key, "tuple_name") else str(key) for key in path
    )
    return "".join(fields)
