"""Gradients of three terms, and rubbish in the place of those of absent ones."""

import jax
import numpy as np

K, STEPS = 3, 6
# No axis of a parameter is as long as K or K - 1: one of those is a term axis.
PARAMS = {"w": np.array([1.0, -2.0, 0.5, 0.1]), "s": np.array(-1.0)}


def draw(steps=STEPS, seed=0, params=PARAMS):
    """Gradients [steps, K, *p] of very different size, and losses [steps, K]."""
    rng = np.random.default_rng(seed)
    sizes = np.array([30.0, 1.0, 0.02])

    def one(leaf):
        over = sizes.reshape(-1, *(1,) * leaf.ndim)
        return over * rng.normal(size=(steps, K, *leaf.shape))

    return jax.tree.map(one, params), rng.uniform(0.5, 2.0, size=(steps, K))


def spoiled(tree, masks):
    """NaN and infinity wherever a term is absent."""
    bad = np.where(np.arange(masks.size).reshape(masks.shape) % 2, np.nan, np.inf)

    def spoil(leaf):
        over = (*masks.shape, *(1,) * (leaf.ndim - 2))
        return np.where(masks.reshape(over), leaf, bad.reshape(over))

    return jax.tree.map(spoil, tree)
