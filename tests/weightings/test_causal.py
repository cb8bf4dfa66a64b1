"""Causal weights against their formula, and the order that they follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import causal
from tests._methods import Method
from tests._problems import sizes
from tests.weightings._runs import deviation, random_losses, run

METHODS = {
    # Far from the minimum the last terms hardly pull.
    "causal": Method(causal, ordered=True),
    "causal, gentle": Method(causal, {"tol": 0.1}, ordered=True),
}


def formula(losses, tol):
    """The matrix of the authors' code has ones below its diagonal."""
    K = losses.shape[1]
    return np.exp(-tol * losses @ np.tril(np.ones((K, K)), k=-1).T)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(1, 2)))
@pytest.mark.parametrize("tol", [0.0, 0.01, 1.0])
def test_transcription(tol, terms, rng, record_deviation):
    losses = random_losses(rng, 40, terms)
    found, _ = run(causal(tol), losses * (-1) ** np.arange(terms))
    largest = deviation(found, formula(losses, tol))
    record_deviation("causal", largest)
    assert largest <= 1e-12


def test_the_order_is_that_of_the_losses():
    weighting = causal()
    expected = formula(np.array([[0.5, 1.0, 2.0]]), 1.0)[0]
    for losses in (
        jnp.array([0.5, 1.0, 2.0]),
        [0.5, 1.0, 2.0],
        {"t2": 2.0, "t0": 0.5, "t1": 1.0},  # sorted by key
    ):
        weights, _ = weighting.update(None, weighting.init(3), losses=losses)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_absent_chunks_are_waited_for_by_none():
    weighting = causal()
    losses, there = jnp.array([0.5, 1.0, 2.0]), jnp.array([True, False, True])
    weights, _ = weighting.update(None, weighting.init(3), losses=losses, present=there)
    np.testing.assert_allclose(weights, [1.0, 0.0, np.exp(-0.5)], rtol=1e-6)


def test_losses_at_the_ends():
    losses = np.array([[0.0, np.inf, 1.0], [1e-15, 1e15, 1.0], [0.0, 0.0, np.nan]])
    weights, _ = run(causal(), losses)
    np.testing.assert_array_equal(weights, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    weights, _ = run(causal(0.0), losses)
    np.testing.assert_array_equal(weights, 1.0)


def test_the_tolerance_may_be_traced():
    losses = np.array([0.5, 1.0, 2.0])

    @jax.jit
    def weigh(tol):
        weighting = causal(tol)
        return weighting.update(None, weighting.init(3), losses=losses)[0]

    for tol in (0.0, 0.3):
        expected = formula(losses[None], tol)[0]
        np.testing.assert_allclose(weigh(tol), expected, rtol=1e-6)
