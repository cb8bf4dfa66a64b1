"""Losses of any size, and of zero, give finite weights in every method that reads them.

Losses that are not finite are covered by each method's own tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import _methods

READERS = {
    name: method
    for name, method in _methods.methods().items()
    if method.make(3).reads_losses
}
# Three steps each, of losses that rise, fall and vanish.
RUNS = np.array(
    [
        np.array([[1.0, 2.0, 0.5], [3.0, 1.0, 0.4], [2.0, 0.5, 0.4]]) * scale
        for scale in (1e-15, 1e15, np.array([1e-15, 1.0, 1e15]))
    ]
    + [
        [[0.0, 0.0, 0.0], [1.0, 0.0, 1e-15], [0.0, 1e15, 1.0]],
        [[1e15, 1e-15, 1.0], [0.0, 0.0, 0.0], [1e-15, 1e15, 0.0]],
    ],
    np.float32,
)


@pytest.mark.parametrize("name", READERS)
def test_weights_are_finite(name):
    weighting = READERS[name].make(3)
    gramian = jnp.array([[4.0, -1.0, 0.5], [-1.0, 1.0, 0.2], [0.5, 0.2, 2.0]])
    products = _methods.products(READERS[name], gramian)

    def step(state, losses):
        weights, state = weighting.update(products, state, losses=losses)
        return state, weights

    start = weighting.init(3)
    weights = jax.jit(jax.vmap(lambda run: jax.lax.scan(step, start, run)[1]))(RUNS)
    assert np.all(np.isfinite(weights)), weights
    assert READERS[name].signed or np.all(np.asarray(weights) >= 0), weights
