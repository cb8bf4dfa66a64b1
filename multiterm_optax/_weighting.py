"""The contract of a weighting: (gramian, losses) -> weights, a small pure function.

A weighting never sees a parameter. The same object serves ``reweight`` in a
chain, ``weighted`` around an optimizer, and, where it reads losses only, the
losses alone.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax._typing import Gramian, Losses, Mixing, Weights


class WeightingInit(Protocol):
    """``init(num_terms) -> state``."""

    def __call__(self, num_terms: int) -> Any:
        """Returns the state before the first step."""
        ...


class WeightingUpdate(Protocol):
    """``update(gramian, state, *, losses=None) -> (weights, state)``."""

    def __call__(
        self,
        gramian: Gramian | None,
        state: Any,
        *,
        losses: Losses | None = None,
        **extra_args: Any,
    ) -> tuple[Weights | Mixing, Any]:
        """Returns this step's weights, [K] or [K, K], and the next state."""
        ...


class Weighting(NamedTuple):
    """A method that turns dot products of gradients, or losses, into weights.

    Attributes:
      init: ``init(num_terms) -> state``.
      update: ``update(gramian, state, *, losses=None, **extra_args) -> (weights,
        state)``. ``gramian`` is [K, K]; ``losses`` is [K]; ``weights`` is [K], or a
        mixing matrix [K, K] whose row i makes the new gradient of term i. A state
        with a boolean field ``ready`` asks for the step to be skipped when False.
      reads_gramian: Whether ``update`` needs the gramian; where it does not, no
        per-term gradient is needed and ``gramian`` may be None.
      reads_losses: Whether ``update`` needs ``losses``.
    """

    init: WeightingInit
    update: WeightingUpdate
    reads_gramian: bool = True
    reads_losses: bool = False


def losses_vector(losses: Any, name: str, num_terms: int, *, needed: bool) -> Any:
    """Returns ``losses`` as an array [K], in the order of its leaves."""
    if losses is None:
        if needed:
            raise ValueError(
                f"{name}: this weighting reads the losses; pass the extra argument "
                "losses, as in tx.update(grads, state, params, losses=losses), found "
                "none."
            )
        return None
    leaves = jax.tree_util.tree_leaves_with_path(losses)
    if len(leaves) == 1 and jnp.ndim(leaves[0][1]) == 1:
        vector = jnp.asarray(leaves[0][1])
    else:
        for path, leaf in leaves:
            if jnp.ndim(leaf) != 0:
                raise ValueError(
                    f"{name}: losses must be an array [K] or a pytree of K scalars; "
                    f"losses{keystr(path)} has shape {jnp.shape(leaf)}."
                )
        vector = jnp.stack([jnp.asarray(leaf) for _, leaf in leaves])
    if vector.shape != (num_terms,):
        raise ValueError(
            f"{name}: losses must hold num_terms={num_terms} values, found "
            f"{vector.shape[0]}."
        )
    return vector.astype(jnp.result_type(vector, jnp.float32))
