"""Gradients that have no good answer, three at a time: one program serves them all."""

import functools

import jax
import numpy as np

ROWS = {
    "all zero": [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    "two zero": [[1, 2, 0], [0, 0, 0], [0, 0, 0]],
    "one zero": [[1, 2, 0], [0, 0, 0], [0, 3, 1]],
    "zero and opposed": [[1, 2, 0], [0, 0, 0], [-1, -2, 0]],
    "equal": [[1, 2, 0], [1, 2, 0], [1, 2, 0]],
    "two equal": [[1, 2, 0], [1, 2, 0], [0, 3, 1]],
    "parallel": [[1, 2, 0], [1000, 2000, 0], [1e-3, 2e-3, 0]],
    "two opposed": [[1, 2, 0], [-1, -2, 0], [2, -1, 0]],
    "opposed, lengths apart": [[1, 2, 0], [-1000, -2000, 0], [2, -1, 0]],
    "opposed, rank 1": [[1, 2, 0], [-1, -2, 0], [3, 6, 0]],
    "opposed to a mixture": [[1, 0, 0], [1, 1, 0], [-2, -1, 0]],
    "two dimensions": [[1, 0, 0], [1, 1, 0], [0, 1, 0]],
    "nearly equal": [[1, 0, 0], [1, 1e-5, 0], [0, 1, 0]],
    "nearly opposed": [[1, 0, 0], [-1, 1e-5, 0], [0, 1, 0]],
}
# Some have a zero in their hull, all of whose parts are used or not.
OPPOSED = [name for name in ROWS if "opposed" in name and "nearly" not in name]
SCALES = [1e-15, 1.0, 1e15]


def solutions(solve, scale):
    """By name: rows, weights and state of each; ``solve`` is given all rows."""
    rows = np.float32(list(ROWS.values())) * np.float32(scale)
    weights, states = jax.tree.map(np.asarray, solve(rows))
    return {
        name: (rows[i].astype(np.float64), pick(weights, i), pick(states, i))
        for i, name in enumerate(ROWS)
    }


def batched(weighting):
    """Weights and states for a batch of rows [N, K, P], as NumPy arrays."""
    compiled = jax.jit(jax.vmap(functools.partial(step, weighting)))
    return lambda rows: jax.tree.map(np.asarray, compiled(gramians(rows)))


def step(weighting, gramian):
    return weighting.update(gramian, weighting.init(len(gramian)))


def gramians(rows):
    """As exact as the dtype of the rows can hold them."""
    rows = np.asarray(rows)
    exact = rows.astype(np.float64)
    return (exact @ exact.swapaxes(-1, -2)).astype(rows.dtype)


def pick(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def random_batch(seed, terms, count, *, agreeing=True, apart=3):
    """Random gradients [count, K, 2 K], ill-conditioned in many ways.

    ``agreeing``: some direction is at most 88 degrees from each of them. Their lengths
    differ by up to ``apart`` orders of magnitude from 1.
    """
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        rows = rng.normal(size=(terms, 2 * terms))
        kind = len(found) % 4
        if kind == 1:  # small in most directions
            rows *= 10.0 ** rng.uniform(-2, 0, 2 * terms)
        elif kind == 2:  # nearly the same, or nearly opposed
            rows = 0.05 * rows + rng.choice([-1, 1], (terms, 1)) * rows[:1]
        elif kind == 3:  # in the plane of few
            rank = max(2, terms // 2)
            rows = rng.normal(size=(terms, rank)) @ rng.normal(size=(rank, 2 * terms))
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        along = rng.normal(size=2 * terms) @ rows.T @ rows
        along /= np.linalg.norm(along)
        if agreeing:
            rows *= np.sign(rows @ along)[:, None]
            if np.min(rows @ along) < 0.03:
                continue
        found.append(rows * 10.0 ** rng.uniform(-apart, apart, (terms, 1)))
    return np.stack(found)
