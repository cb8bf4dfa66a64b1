"""Gradients in three leaves, and what a method should make of their groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import reweight

TERMS, STEPS = 3, 5
SHAPES = {"a": (6,), "b": (3, 4), "c": (2, 2, 2)}
GROUPINGS = {
    "leaf": ("leaf", [["a"], ["b"], ["c"]]),
    "global": ("global", [["a", "b", "c"]]),
    "labels": ({"a": "x", "b": "y", "c": "x"}, [["a", "c"], ["b"]]),
}
# Labels ask the most; that each leaf, or all of them, may be a group is the stage's
# matter and is tried with MGDA.
SOME = [
    pytest.param(name, marks=[] if name == "labels" else pytest.mark.slow)
    for name in GROUPINGS
]


def gradients():
    """Leaves [steps, K, *p], the terms at sizes of their own."""
    rng = np.random.default_rng(5)
    sizes = np.array([1.0, 30.0, 0.2])
    return {
        name: rng.normal(size=(STEPS, TERMS, *shape))
        * sizes.reshape(-1, *(1,) * len(shape))
        for name, shape in SHAPES.items()
    }


def run(weighting, grouping):
    """New gradients of every step by the library."""
    return run_stage(reweight(weighting, TERMS, GROUPINGS[grouping][0]))


def run_stage(*stages):
    """The same of a stage, or a list of those of several, by one program."""

    def every_step(tx, grads):
        def step(state, grads):
            updates, state = tx.update(grads, state)
            return state, updates

        start = tx.init({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
        return jax.lax.scan(step, start, grads)[1]

    compiled = jax.jit(lambda grads: [every_step(tx, grads) for tx in stages])
    found = jax.tree.map(np.asarray, compiled(gradients()))
    return found[0] if len(found) == 1 else found


def expected(mix, grouping):
    """The same by ``mix(t, J) -> J`` on each group's own matrix."""
    given = gradients()
    made = {name: np.zeros_like(leaf) for name, leaf in given.items()}
    for t in range(STEPS):
        for names in GROUPINGS[grouping][1]:
            parts = [given[name][t].reshape(TERMS, -1) for name in names]
            new = mix(t, np.concatenate(parts, axis=1))
            cuts = np.cumsum([part.shape[1] for part in parts])[:-1]
            for name, part in zip(names, np.split(new, cuts, axis=1), strict=True):
                made[name][t] = part.reshape(TERMS, *SHAPES[name])
    return made


def summed(updates):
    """Sum over the terms: what a weighting's direction is."""
    return {name: np.sum(leaf, axis=1) for name, leaf in updates.items()}
