"""Many steps of a stage that multiplies each term's gradient by a number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests._asserts import assert_finite

K, STEPS = 3, 30
SHAPES = {"a": (3, 4), "b": (5,), "c": ()}
PARAMETERS = 18


def draw(steps=STEPS, terms=K, seed=0):
    """Gradients [steps, K, P] whose sizes wander, and positive losses [steps, K]."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(0.2 * rng.normal(size=(steps, terms)), axis=0)
    sizes = np.exp(drift) * np.array([1.0, 300.0, 0.02, 5.0])[:terms]
    rows = rng.normal(size=(steps, terms, PARAMETERS)) + rng.normal(size=PARAMETERS)
    losses = np.exp(np.cumsum(0.2 * rng.normal(size=(steps, terms)), axis=0))
    return sizes[..., None] * rows, losses


def leaves(rows):
    """The last axis as leaves."""
    cuts = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])[:-1]
    parts = jnp.split(rows, cuts, axis=-1)
    lead = rows.shape[:-1]
    return {
        name: part.reshape(*lead, *shape)
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def matrix(tree):
    """The way back, for leaves [K, *p]."""
    parts = [tree[name].reshape(len(tree[name]), -1) for name in SHAPES]
    return jnp.concatenate(parts, axis=1)


def steps_of(tx):
    """``(rows [steps, K, P], losses) -> (updates [steps, K, P], states)``."""

    def step(state, data):
        rows, losses = data
        updates, state = tx.update(leaves(rows), state, losses=losses)
        return state, (matrix(updates), state)

    def run(rows, losses):
        like = jax.tree.map(lambda leaf: leaf[0, 0], leaves(rows))
        return jax.lax.scan(step, tx.init(like), (rows, losses))[1]

    return run


@functools.cache
def _program(tx):
    return jax.jit(steps_of(tx))


def run(tx, rows, losses):
    """Updates [steps, K, P] and states; equal arguments share a program."""
    return jax.device_get(_program(tx)(rows, losses))


def deviation(updates, rows, weights):
    """Largest error of a term's step, relative to the step."""
    expected = weights[..., None] * rows
    gaps = np.max(np.abs(updates - expected), axis=-1)
    return float(np.max(gaps / np.max(np.abs(expected), axis=-1)))


def awkward():
    """Gradients [cases, 4, K, P], by name."""
    rows, _ = draw(steps=4)
    rows[:, 1] /= 300
    rows[:, 2] *= 50
    found = {"plain": rows, "zero": 0 * rows, "equal": rows[:, :1].repeat(K, axis=1)}
    found["opposed"] = found["equal"] * np.array([1, -1, 1])[:, None]
    found["the same everywhere"] = np.ones_like(rows) * np.array([1, 2, -3])[:, None]
    for term in range(K):
        for name, times in {"never": slice(None), "late": slice(2)}.items():
            found[f"{term} {name}"] = rows.copy()
            found[f"{term} {name}"][times, term] = 0
    return found


SCALES = np.array([1.0, 1e-15, 1e-8, 1e8, 1e15])
APART = np.array([[1e-15, 1.0, 1e15], [1e15, 1e-15, 1.0], [1.0, 1e15, 1e-15]])


def assert_awkward_is_finite(tx):
    """In float32, at every scale; returns the states of the plain case by scale."""
    cases = awkward()
    scaled = [scale * rows for scale in SCALES for rows in cases.values()]
    apart = [sizes[:, None] * cases["plain"] for sizes in APART]
    batch = np.stack([*scaled, *apart]).astype(np.float32)
    losses = np.ones((4, K), np.float32) * np.float32([1.0, 0.0, 2.0])
    many = jax.jit(jax.vmap(steps_of(tx), (0, None)))
    updates, states = many(batch, losses)
    assert_finite((updates, states))
    zero = np.max(np.abs(batch), axis=-1) == 0
    assert not np.any(np.asarray(updates)[zero])
    plain = np.arange(len(SCALES)) * len(cases)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[plain], states)
