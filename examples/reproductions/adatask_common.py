"""What the AdaTask scripts share: optimizers that record dominance, and their shares.

All of them are RMSProp. With a weighting, one second moment serves all terms, as in the
plain optimizer on the weighted sum of the losses; AdaTask has one for each term.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import multiterm_optax as mt

K, DECAY = 2, 0.99


class SharedRMSState(NamedTuple):
    nu: Any


def scale_by_shared_rms():
    """RMSProp of the summed gradient, but with the terms still apart: K to K."""

    def init(params):
        return SharedRMSState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, **extra_args):
        nu = jax.tree.map(
            lambda v, g: DECAY * v + (1 - DECAY) * jnp.square(g.sum(axis=0)),
            state.nu,
            updates,
        )
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + 1e-8), updates, nu)
        return scaled, SharedRMSState(nu)

    return optax.GradientTransformationExtraArgs(init, update)


def shared(weighting, rate):
    """A weighting before RMSProp, with dominance recorded."""
    return mt.chain(
        mt.reweight(weighting, K),
        scale_by_shared_rms(),
        mt.metrics.track_dominance(K),
        mt.sum_terms(),
        optax.scale_by_learning_rate(rate),
    )


def adatask(rate, weighting=None, inner=None):
    """AdaTask with RMSProp, dominance recorded; after a weighting if there is one."""
    rms = optax.scale_by_rms(decay=DECAY, eps=1e-8, eps_in_sqrt=False)
    return mt.chain(
        *([] if weighting is None else [mt.reweight(weighting, K)]),
        mt.per_term(rms if inner is None else inner, K),
        mt.metrics.track_dominance(K),
        mt.sum_terms(),
        optax.scale_by_learning_rate(rate),
    )


def layer_shares(state, layers):
    """[layers + 1, 5]: all shared parameters first, then each layer's; or nothing.

    Each row: the shares of parameters whose rAU of the last term is in each fifth.
    """
    try:
        rau: Any = mt.metrics.dominance(state)
    except ValueError:  # not recorded
        return jnp.zeros((0,))
    parts = [rau[layer] for layer in layers]
    each = [mt.metrics.dominance_shares(part)[-1] for part in [parts, *parts]]
    return jnp.stack(each)
