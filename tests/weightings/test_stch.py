"""Smooth Tchebycheff, against the derivatives of what it descends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import stch
from tests._arguments import ByTerm
from tests._asserts import assert_close, assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.weightings._runs import deviation, random_losses, run

METHODS = {
    "stch": Method(stch),
    "stch, logarithm": Method(
        stch,
        {
            "mu": 0.5,
            "preference": ByTerm((0.1, 0.4, 0.3, 0.2)),
            "nadir": ByTerm((2.0, 0.5, 1.0, 3.0)),
        },
    ),
}


def derivatives(losses, mu, lam, nadir=None):
    """By complex steps, each exact to rounding."""
    h = 1e-200
    shifted = losses + 1j * h * np.eye(len(losses))
    values = shifted if nadir is None else np.log(shifted / nadir)
    return (mu * np.log(np.sum(np.exp(lam * values / mu), axis=1))).imag / h


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(1, 2)))
@pytest.mark.parametrize("form", ["plain", "preference", "logarithm"])
def test_transcription(form, terms, rng, record_deviation):
    losses = random_losses(rng, 40, terms)
    lam = np.full(terms, 1 / terms)
    preference = nadir = None
    if form != "plain":
        lam = preference = rng.uniform(0.1, 2.0, terms)
    if form == "logarithm":
        nadir = rng.uniform(0.1, 2.0, terms)
    else:
        losses[:, 0] *= -1
    found, _ = run(stch(0.7, preference, nadir), losses)
    expected = np.stack([derivatives(row, 0.7, lam, nadir) for row in losses])
    largest = deviation(found, expected)
    record_deviation(f"stch, {form}", largest)
    assert largest <= 1e-12


@pytest.mark.usefixtures("x64")
def test_all_may_be_traced():
    losses = np.array([0.5, 2.0, 3.0])

    @jax.jit
    def weigh(mu, preference, nadir):
        weighting = stch(mu, preference, nadir)
        return weighting.update(None, weighting.init(3), losses=losses)[0]

    lam, nadir = np.array([0.2, 0.3, 0.5]), np.array([1.0, 2.0, 0.5])
    for mu in (0.1, 1.0):
        expected = derivatives(losses, mu, lam, nadir)
        assert_close(weigh(mu, lam, nadir), expected, rtol=1e-12)


def test_a_small_mu_leaves_the_largest_only():
    losses = np.array([[1e30, 1.0, -1e30], [3.0, 2.9, 1.0]])
    weights, _ = run(stch(1e-6), losses)
    np.testing.assert_allclose(weights, [[1 / 3, 0, 0]] * 2, rtol=1e-6)
    equal, _ = run(stch(np.inf), losses)
    np.testing.assert_allclose(equal, 1 / 9, rtol=1e-6)


def test_losses_at_the_ends():
    weights, _ = run(stch(), np.array([[np.inf, 1.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(weights, [[0.5, 0.0], [0.25, 0.25]])
    losses = np.array([[0.0, 1.0], [0.0, 0.0], [1e-15, 1e15]])
    weights, _ = run(stch(nadir=[1.0, 1.0]), losses)
    np.testing.assert_allclose(weights[:2], [[0.0, 0.5], [0.0, 0.0]])
    # The shares of the roots, 1e-15 and 1, over the losses.
    np.testing.assert_allclose(weights[2], [0.5, 0.5e-15], rtol=1e-4)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mu": 0.0}, ["mu", "(0, inf]", "0.0"]),
        ({"preference": [1.0, 2.0]}, ["preference", "(3,)", "(2,)"]),
        ({"preference": [1.0, -2.0, 1.0]}, ["preference", "[0, inf)", "-2.0"]),
        ({"preference": "high"}, ["preference", "3 numbers", "'high'"]),
        ({"nadir": [1.0, 0.0, 1.0]}, ["nadir", "(0, inf]", "0."]),
        ({"nadir": 1.0}, ["nadir", "(3,)", "()"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        stch(**options).init(3)
    assert_message(error.value, "stch", *words)


def test_the_authors_multi_task_form(rng):
    """K times the soft maximum of the plain logarithms, as their code descends it."""
    losses, nadir = random_losses(rng, 5, 3), np.array([1.0, 2.0, 0.5])
    found, _ = run(stch(0.4, np.ones(3), nadir), losses)
    powers = (losses / nadir) ** (1 / 0.4)
    expected = 3 * powers / powers.sum(axis=1, keepdims=True) / losses
    np.testing.assert_allclose(3 * found, expected, rtol=1e-5)
    assert jnp.asarray(found).dtype == jnp.float32
