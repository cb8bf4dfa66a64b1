"""An inner transformation that records what reaches it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class RecorderState(NamedTuple):
    count: jax.Array
    grads: Any
    losses: jax.Array
    present: jax.Array


def recorder(num_terms):
    """Sums the terms; its state holds the last gradients, losses and ``present``."""

    def init(params):
        return RecorderState(
            jnp.zeros([], jnp.int32),
            jax.tree.map(lambda p: jnp.zeros((num_terms, *p.shape), p.dtype), params),
            jnp.full((num_terms,), -1.0),
            jnp.zeros((num_terms,), jnp.bool_),
        )

    def update(updates, state, params=None, *, losses=None, present=None, **extra):
        del params, extra
        new = RecorderState(
            state.count + 1,
            updates,
            state.losses if losses is None else jnp.stack(jax.tree.leaves(losses)),
            state.present if present is None else present,
        )
        if losses is not None and new.losses.ndim == 2:
            new = new._replace(losses=new.losses[0])
        return jax.tree.map(lambda u: jnp.sum(u, axis=0), updates), new

    return optax.GradientTransformationExtraArgs(init, update)
