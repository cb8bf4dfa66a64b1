"""What negative losses do: never a negative weight, which would go uphill unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiterm_optax as mt
from tests import _methods
from tests.weightings import _steps
from tests.weightings.test_sizes_of_losses import GRAMIAN, READERS, each_reader

RUNS = {
    "mixed": [[-1.08, -0.02, 95.0]] * 3,
    "sign changes": [[1.0, -2.0, 1e-3], [-1.0, 3.0, -5.0], [1.0, -1.0, 1e-3]],
    "from almost zero": [[1e-37, -1e-37, 1.0], [1e30, -1e30, 1.0], [1.0, 1.0, -1.0]],
    "far apart": [[1e-37, 1e30, -1e30]] * 3,
}


COMPILED = {}


def compiled(method):
    """One program for all runs of a method."""
    if id(method) not in COMPILED:
        weighting = method.make(3)
        products = _methods.products(method, GRAMIAN)
        step = jax.jit(lambda s, x: weighting.update(products, s, losses=x))
        COMPILED[id(method)] = weighting, step, method  # which keeps its id alive
    return COMPILED[id(method)][:2]


def weights_of(method, run):
    weighting, update = compiled(method)
    state, found = weighting.init(3), []
    # Once more, since some methods use what the last step has left.
    for losses in [*run, run[-1]]:
        weights, state = update(state, jnp.array(losses))
        found.append(np.asarray(weights))
    return np.stack(found)


@each_reader
def test_weights_are_neither_negative_nor_without_bound(name):
    # The last step once more, since some methods use what it has left.
    runs = np.array([[*run, run[-1]] for run in RUNS.values()])
    weights, _ = _steps.run_batch(name, GRAMIAN, runs)
    assert np.all(np.isfinite(weights)), weights
    assert READERS[name].signed or np.all(weights >= 0), weights


@pytest.mark.parametrize(
    "method",
    [
        _methods.Method(mt.lbtw, {"alpha": 1.0}),
        _methods.Method(mt.dwa),
        _methods.Method(mt.by_loss, {"decay": 0.5}),
        _methods.Method(mt.gradnorm),
        _methods.Method(mt.mgda, {"normalization": "loss"}),
        _methods.Method(
            mt.softadapt, {"beta": 0.0, "history": 2, "loss_weighted": True}
        ),
    ],
    ids=lambda method: method.factory.__name__,
)
def test_a_negative_loss_counts_by_its_magnitude(method):
    run = np.array(RUNS["sign changes"])
    np.testing.assert_array_equal(
        weights_of(method, run), weights_of(method, np.abs(run))
    )


def test_ratios_of_negative_losses():
    found = weights_of(_methods.Method(mt.lbtw, {"alpha": 1.0}), RUNS["sign changes"])
    np.testing.assert_allclose(found[1], [1.0, 1.5, 5000.0], rtol=1e-6)


def test_uncertainty_leaves_the_weights_of_negative_losses():
    found = weights_of(_methods.Method(mt.uncertainty), RUNS["mixed"])
    np.testing.assert_array_equal(found[:, :2], 0.5)
    assert found[-1, 2] < 0.5
