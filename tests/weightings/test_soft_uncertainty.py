"""Soft uncertainty weighting against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import soft_uncertainty
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.weightings._runs import deviation, random_losses, run

METHODS = {
    # A loss at zero has all the weight, and the others wait for good.
    "soft_uncertainty": Method(soft_uncertainty, {"temperature": 2.0}, pareto=True),
}


def formula(losses, T):
    powers = np.exp(1 / (T * losses))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(1, 2)))
@pytest.mark.parametrize("temperature", [0.3, 20.0])
def test_transcription(temperature, terms, rng, record_deviation):
    losses = random_losses(rng, 40, terms)
    losses = np.maximum(losses, 0.05)  # the formula itself overflows below
    found, _ = run(soft_uncertainty(temperature), losses * (-1) ** np.arange(terms))
    largest = deviation(found, formula(losses, temperature))
    record_deviation("soft_uncertainty", largest)
    assert largest <= 1e-12


def test_the_temperature_may_be_traced():
    losses = jnp.array([1.0, 0.5])

    @jax.jit
    def weigh(temperature):
        weighting = soft_uncertainty(temperature)
        return weighting.update(None, weighting.init(2), losses=losses)[0]

    for temperature in (0.5, 5.0):
        expected = formula(np.array([[1.0, 0.5]]), temperature)[0]
        np.testing.assert_allclose(weigh(temperature), expected, rtol=1e-6)


def test_losses_at_the_ends():
    losses = np.array(
        [[0.0, 1.0, 0.0], [1e-15, 1e15, 1.0], [np.inf, 1.0, 1.0], [1e-40, 1e-40, 1e38]]
    )
    weights, _ = run(soft_uncertainty(1e-3), losses)
    expected = [[0.5, 0, 0.5], [1, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]]
    np.testing.assert_array_equal(weights, expected)
    equal, _ = run(soft_uncertainty(np.inf), losses)
    np.testing.assert_allclose(equal, 1 / 3, rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("bad", [0.0, -1.0, "hot"])
def test_bad_temperatures_are_errors(bad):
    with pytest.raises((TypeError, ValueError)) as error:
        soft_uncertainty(bad)
    assert_message(error.value, "soft_uncertainty", "temperature", repr(bad))
