"""Chains of this library's stages and Optax's, run on the same gradients."""

import jax
import numpy as np
import optax

import multiterm_optax as mt
from tests._runs import all_steps, first_step

K = 2
# Data are NumPy's: each operation on JAX arrays outside jit is a program of its own.
PARAMS = {"b": np.ones(2, np.float32), "w": np.ones((3, 2), np.float32)}
MATRICES = {"b": False, "w": True}
LOSSES = np.array([1.0, 2.0], np.float32)


def by_ndim(params):
    return jax.tree.map(lambda p: p.ndim == 2, params)


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(size=(K, *p.shape)).astype(np.float32), PARAMS
    )


def total(grads):
    """The sum of the terms, by NumPy."""
    return jax.tree.map(lambda g: np.asarray(g).sum(axis=0), grads)


def mtadam(**options):
    return mt.mtadam(0.1, K, **options)


def steps(tx, batches, params=PARAMS, **extra_args):
    """Updates of every step, in NumPy, and the last state."""
    if len(batches) == 1:
        updates, state = first_step(tx, batches[0], params, **extra_args)
        return [updates], state
    number = len(batches)
    extra = jax.tree.map(lambda x: np.stack([x] * number), extra_args)
    grads = jax.tree.map(lambda *g: np.stack(g), *batches)
    updates, states = all_steps(tx, grads, params, **extra)
    history = [jax.tree.map(lambda u, i=i: u[i], updates) for i in range(number)]
    return history, jax.tree.map(lambda s: s[-1], states)


def beside(*each):
    """Transformations of the same gradients as one, so that they are one program."""

    def update(updates, state, params=None, **extra_args):
        pairs = zip(each, state, strict=True)
        found = [tx.update(updates, s, params, **extra_args) for tx, s in pairs]
        return tuple(u for u, _ in found), tuple(s for _, s in found)

    each = [optax.with_extra_args_support(tx) for tx in each]
    return optax.GradientTransformationExtraArgs(
        lambda params: tuple(tx.init(params) for tx in each), update
    )
