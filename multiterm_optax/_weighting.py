"""The contract of a weighting: (gramian, losses) -> weights, a small pure function.

A weighting never sees a parameter. The same object serves ``reweight`` in a
chain, ``weighted`` around an optimizer, and, where it reads losses only, the
losses alone.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jaxtyping import Array, Bool, Float

from multiterm_optax import _checks, _products, _terms, _words
from multiterm_optax._typing import Gramian, Losses, Mixing, Weights


class WeightingInit(Protocol):
    """``init(num_terms) -> state``."""

    def __call__(self, num_terms: int) -> Any:
        """Returns the state before the first step."""
        ...


class WeightingUpdate(Protocol):
    """``update(gramian, state, *, losses, present) -> (weights, state)``."""

    def __call__(
        self,
        gramian: Gramian | None,
        state: Any,
        *,
        losses: Losses | None = None,
        present: Bool[Array, " K"] | None = None,
        **extra_args: Any,
    ) -> tuple[Weights | Mixing, Any]:
        """Returns this step's weights, [K] or [K, K], and the next state."""
        ...


class Weighting(NamedTuple):
    """A method that turns dot products of gradients, or losses, into weights.

    Attributes:
      init: ``init(num_terms) -> state``.
      update: ``update(gramian, state, *, losses=None, present=None, **extra_args) ->
        (weights, state)``. ``gramian`` is [K, K]; ``losses`` is [K]; ``weights`` is
        [K], or a mixing matrix [K, K] whose row i makes the new gradient of term i.
        A state with a boolean field ``ready`` asks for the step to be skipped when
        False. ``present`` [K] tells which terms are there in this step, all for None:
        the weights are those of the smaller problem that has only these terms. An
        absent term gets the weight 0, what the gramian and the losses hold for it is
        never read, and its part of the state, its count of steps included, stays as
        it is. Where all are absent all weights are 0.
      reads_gramian: Whether ``update`` needs the gramian; where it does not, no
        per-term gradient is needed and ``gramian`` may be None.
      reads_losses: Whether ``update`` needs ``losses``.
    """

    init: WeightingInit
    update: WeightingUpdate
    reads_gramian: bool = True
    reads_losses: bool = False


def check(weighting: Any, name: str) -> None:
    """Refuses what is no weighting."""
    if not isinstance(weighting, Weighting):
        raise TypeError(
            f"{name}: weighting must be a multiterm_optax.Weighting, such as mgda(), "
            f"found {_words.describe(weighting)}."
        )


def prepare(
    weighting: Weighting,
    updates: Any,
    losses: Any,
    present: Any,
    name: str,
    num_terms: int,
) -> tuple[Any, Any, jax.Array | None]:
    """Returns updates, losses [K] and the mask of a step; absent terms are zeros."""
    present = _checks.present(present, name, num_terms)
    losses = losses_vector(
        losses, name, num_terms, needed=weighting.reads_losses, present=present
    )
    updates = jax.tree.map(partial(_terms.only_present, present), updates)
    return updates, losses, present


def find_weights(
    weighting: Weighting,
    leaves: list[jax.Array],
    state: Any,
    losses: Losses | None,
    num_terms: int,
    present: Bool[Array, " K"] | None = None,
    **extra_args: Any,
) -> tuple[Weights | Mixing, Any]:
    """One step of a weighting on leaves [K, *p]; their gramian only if it is read.

    Absent terms must be zeros in the leaves and in the losses already: :func:`prepare`.
    """
    gramian = None
    if weighting.reads_gramian:
        gramian = _products.gramian(*leaves, num_terms=num_terms)
    return weights_from(
        weighting, gramian, state, losses, present=present, **extra_args
    )


def weights_from(
    weighting: Weighting,
    gramian: Gramian | None,
    state: Any,
    losses: Losses | None,
    present: Bool[Array, " K"] | None = None,
    **extra_args: Any,
) -> tuple[Weights | Mixing, Any]:
    """One step of a weighting on a gramian, if it reads one."""
    if present is None:
        return weighting.update(gramian, state, losses=losses, **extra_args)
    if gramian is not None:
        gramian = pairs_present(present, gramian)
    weights, state = weighting.update(
        gramian, state, losses=losses, present=present, **extra_args
    )
    # A weighting of the user's own may not know of absent terms.
    if weights.ndim == 1:
        return _terms.only_present(present, weights), state
    return pairs_present(present, weights), state


def pairs_present(
    present: Bool[Array, " K"] | None, matrix: Float[Array, "K K"]
) -> Float[Array, "K K"]:
    """Zeros in the rows and in the columns of absent terms; all are there for None."""
    if present is None:
        return matrix
    return jnp.where(present[:, None] & present[None, :], matrix, 0)


def neutral_weights(weighting: Weighting, state: Any, num_terms: int) -> jax.Array:
    """Ones, or the identity for a weighting that mixes: the weights of no step."""
    dtype = jnp.result_type(float)
    vector = jax.ShapeDtypeStruct((num_terms,), dtype)
    square = jax.ShapeDtypeStruct((num_terms, num_terms), dtype)
    weights, _ = jax.eval_shape(
        lambda g, s, values: weighting.update(g, s, losses=values),
        square if weighting.reads_gramian else None,
        state,
        vector,
    )
    fill = jnp.ones if weights.ndim == 1 else jnp.eye
    return fill(num_terms, dtype=dtype)


def losses_vector(
    losses: Any,
    name: str,
    num_terms: int,
    *,
    needed: bool,
    present: Bool[Array, " K"] | None = None,
) -> Any:
    """Returns ``losses`` as an array [K], in the order of its leaves; absent ones 0."""
    if losses is None:
        if needed:
            raise ValueError(
                f"{name}: this weighting reads the losses; pass the extra argument "
                "losses, as in tx.update(grads, state, params, losses=losses), found "
                "none."
            )
        return None
    leaves = jax.tree_util.tree_leaves_with_path(losses)
    for path, leaf in leaves:
        _checks.real(leaf, f"losses{keystr(path)}", name)
    whole = len(leaves) == 1 and jnp.ndim(leaves[0][1]) == 1
    if not whole:
        for path, leaf in leaves:
            if jnp.ndim(leaf) != 0:
                raise ValueError(
                    f"{name}: losses must be an array [K] or a pytree of K scalars; "
                    f"losses{keystr(path)} has shape {jnp.shape(leaf)}."
                )
    count = jnp.shape(leaves[0][1])[0] if whole else len(leaves)
    if count != num_terms:
        raise ValueError(
            f"{name}: losses must hold num_terms={num_terms} values, found {count}."
        )
    parts = [jnp.asarray(leaf) for _, leaf in leaves]
    vector = parts[0] if whole else jnp.stack(parts)
    vector = vector.astype(jnp.result_type(vector, jnp.float32))
    return _terms.only_present(present, vector)
