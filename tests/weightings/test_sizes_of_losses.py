"""Losses of any size, and of zero, give finite weights in every method that reads them.

Losses that are not finite are covered by each method's own tests.
"""

import numpy as np
import pytest

from tests import _methods
from tests.weightings import _steps

READERS = {
    name: method
    for name, method in _methods.methods().items()
    if method.make(3).reads_losses
}
# A variant has a program of its own.
each_reader = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in _methods.factories() else pytest.mark.slow)
        for n in READERS
    ],
)
GRAMIAN = np.array([[4.0, -1.0, 0.5], [-1.0, 1.0, 0.2], [0.5, 0.2, 2.0]])
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


@each_reader
def test_weights_are_finite(name):
    weights, _ = _steps.run_batch(name, GRAMIAN, RUNS)
    assert np.all(np.isfinite(weights)), weights
    assert READERS[name].signed or np.all(weights >= 0), weights
