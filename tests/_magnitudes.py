"""Gradients and losses of all sizes, and how far two steps on them are apart."""

import jax
import numpy as np

K, STEPS = 3, 3
SHAPES = {"matrix": (2, 3), "scalar": ()}  # few: each leaf is compiled


def unit_grads():
    """Gradients [STEPS, K, *p] of float64 with all entries between 0.15 and 1.

    The terms conflict in some entries and differ in size by at most 2.
    """
    rng = np.random.default_rng(0)

    def draw(shape):
        sizes = rng.uniform(0.3, 1, size=(STEPS, K, *shape))
        signs = np.where(rng.random(sizes.shape) < 0.3, -1, 1)
        return signs * sizes * np.array([1, 0.7, 0.5]).reshape(K, *(1,) * len(shape))

    return {leaf: draw(shape) for leaf, shape in SHAPES.items()}


def unit_losses():
    return np.exp(0.3 * np.random.default_rng(1).normal(size=(STEPS, K)))


CASES = {
    "all small": (1e-18, 1e-18, 1e-18),
    "all at 1e-15": (1e-15, 1e-15, 1e-15),
    "all large": (1e18, 1e18, 1e18),
    "one small": (1e-18, 1.0, 1.0),
    "one large": (1e18, 1.0, 1.0),
    "two small": (1.0, 1e-18, 1e-18),
    "two large": (1e-18, 1e18, 1e18),
    "side by side": (1e-18, 1.0, 1e18),
    "side by side, the first the largest": (1e18, 1e-18, 1.0),
    "far apart": (1e-3, 1.0, 1e18),
    "less far apart": (1.0, 1e5, 1e-5),
}

# Where dot products of opposed signs cancel, what is left of two gradients of 1e-18 may
# be less than float32's smallest number, 1e-38.
CANCELLING = {"all small", "two small"}


def sized(case):
    """Gradients and losses of a case."""
    sizes = np.array(CASES[case])

    def scale(grad):
        return (grad * sizes.reshape(K, *(1,) * (grad.ndim - 2))).astype(np.float32)

    return jax.tree.map(scale, unit_grads()), np.float32(unit_losses() * sizes)


def deviation(found, expected, keeps_terms, measure):
    """Largest error of a step relative to ``measure``; by term where terms are kept."""
    lead = 2 if keeps_terms else 1

    def rows(tree):
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
        return np.concatenate([x.reshape(*x.shape[:lead], -1) for x in leaves], -1)

    one, other = rows(found), rows(expected)
    gaps = np.max(np.abs(one - other), axis=-1)
    sizes = np.max(np.abs(rows(measure)), axis=-1)
    assert np.all(gaps[sizes == 0] == 0)
    return float(np.max(gaps[sizes > 0] / sizes[sizes > 0], initial=0.0))
