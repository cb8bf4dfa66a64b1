"""Steps of a transformation as one program, with NumPy before and after.

Below that, runs of a stage that keeps the terms, as K x P matrices beside a
transcription.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def _program(tx, many):
    """``init`` and the steps; cached, so that equal calls share what is compiled."""

    def run(grads, params, extra):
        lead = (0, 0) if many else 0
        like = jax.tree.map(lambda g: g[lead], grads) if params is None else params

        def step(state, given):
            updates, state = tx.update(given[0], state, params, **given[1])
            return state, (updates, state)

        start = tx.init(like)
        if many:
            return jax.lax.scan(step, start, (grads, extra))[1]
        return step(start, (grads, extra))[1]

    return jax.jit(run)


def first_step(tx, grads, params=None, **extra):
    """Updates and state of the first step; ``update`` gets ``params``, or None."""
    return jax.device_get(_program(tx, False)(grads, params, extra))


def all_steps(tx, grads, params=None, **extra):
    """Updates and states of every step; gradients and ``extra`` with an axis for it."""
    return jax.device_get(_program(tx, True)(grads, params, extra))


SHAPES = {"matrix": (3, 2), "scalar": (), "vector": (4,)}
SIZE = 11


def draw(steps, terms, seed=0, spread=1.0):
    """Gradients [steps, K, P] whose sizes span ``spread`` decades, and losses."""
    rng = np.random.default_rng(seed)
    means, noise = rng.normal(size=(terms, SIZE)), rng.normal(size=(steps, terms, SIZE))
    sizes = 10.0 ** rng.uniform(-spread / 2, spread / 2, size=(terms, 1))
    falling = np.linspace(1, 0.3, steps)[:, None, None]
    return sizes * falling * (means + noise), rng.uniform(0.2, 3.0, size=(steps, terms))


def masks(steps, terms, seed=0):
    """Terms that come late and pause, and a step of none."""
    found = np.random.default_rng(seed).random((steps, terms)) < 0.6
    found[0] = np.arange(terms) == 0
    found[steps // 2] = False
    assert found.any(axis=0).all()
    return found


def split(rows):
    """Leaves [..., *p] of rows [..., P]."""
    leaves, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        part = rows[..., start : start + size]
        leaves[name], start = part.reshape(*rows.shape[:-1], *shape), start + size
    return leaves


def joined(leaves, lead):
    """The way back."""
    parts = [np.asarray(leaves[name], np.float64) for name in SHAPES]
    return np.concatenate([x.reshape(*x.shape[:lead], -1) for x in parts], axis=-1)


def params(dtype=float):
    return {name: np.zeros(shape, dtype) for name, shape in SHAPES.items()}


def run(tx, grads, losses=None, present=None, dtype=None):
    """Rows [steps, K, P] of every step, and the states."""
    start = params(dtype or jnp.result_type(float))
    leaves = jax.tree.map(lambda g, p: g.astype(p.dtype), split(grads), start)
    given = {"losses": losses, "present": present}
    given = {k: v for k, v in given.items() if v is not None}
    updates, states = all_steps(tx, leaves, start, **given)
    return joined(updates, 2), states


def deviation(found, expected):
    """The largest error of a term's step, relative to the longest step of the term."""
    gaps = np.max(np.abs(found - expected), axis=(0, 2))
    sizes = np.max(np.abs(expected), axis=(0, 2))
    assert np.all(np.isfinite(found))
    return float(np.max(gaps / sizes))


def batches(steps, terms):
    """Three times the same gradients, with noise of their own."""
    grads, _ = draw(steps, terms, spread=0.5)
    noise = np.random.default_rng(5).normal(size=(3, *grads.shape))
    return grads + 0.3 * noise


def follow(tx, given, present=None, dtype=float):
    """Rows [steps, K, P] of every step of one to three batches, and the states."""
    start = params(dtype)
    each = [split(np.asarray(one, dtype)) for one in given]
    extra = {f"grads_{i}": one for i, one in enumerate(each[1:], start=2)}
    if present is not None:
        extra["present"] = present
    updates, states = all_steps(tx, each[0], start, **extra)
    return joined(updates, 2), states
