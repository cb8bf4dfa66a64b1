"""Gradient norms as jaxpi balances them: transcription and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import grad_norm_balance
from tests._asserts import assert_finite, assert_message
from tests._methods import Method
from tests.references import grad_norm_balance as reference
from tests.weightings._runs import deviation, random_losses, run

METHODS = {
    "grad_norm_balance": Method(grad_norm_balance, permutes=True, invariant=True)
}

STEPS = 30


def wandering(rng, terms):
    """Norms [STEPS, K] that wander, and gramians with their squares."""
    norms = random_losses(rng, STEPS, terms) * 10.0 ** np.arange(terms)
    return norms, np.einsum("ti,ij->tij", norms**2, np.eye(terms))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_transcription(decay, terms, rng, record_deviation):
    norms, gramians = wandering(rng, terms)
    found, _ = run(grad_norm_balance(decay), norms, gramians)
    expected = reference.averaged(norms, decay=decay)
    largest = deviation(found, expected)
    record_deviation("grad_norm_balance", largest)
    assert largest <= 1e-13


@pytest.mark.usefixtures("x64")
def test_default_is_the_one_documented(rng):
    norms, gramians = wandering(rng, 3)
    found, _ = run(grad_norm_balance(), norms, gramians)
    expected = reference.averaged(norms, decay=0.9)
    assert deviation(found, expected) <= 1e-13


def test_without_memory_the_norms_become_their_mean():
    norms = jnp.array([1.0, 10.0, 1e-3])
    weighting = grad_norm_balance(0.0)
    weights, _ = weighting.update(norms**2, weighting.init(3))
    np.testing.assert_allclose(weights * norms, np.full(3, norms.mean()), rtol=1e-6)


def test_every_scale_in_one_program():
    weighting = grad_norm_balance()
    shapes = np.array([[1, 2, 3], [1, 0, 3], [0, 0, 0], [1, 1, 1], [1e-15, 1, 1e15]])
    scales = np.array([1.0, 1e-15, 1e15])
    norms = np.float32(np.concatenate([shapes[:4] * s for s in scales] + [shapes[4:]]))
    many = jax.jit(jax.vmap(lambda n: weighting.update(n**2, weighting.init(3))))
    weights, states = many(norms)
    assert_finite((weights, states))
    for scaled in np.split(np.asarray(weights)[4:12], 2):
        np.testing.assert_allclose(scaled, weights[:4], rtol=1e-6)
    # The weight of a zero gradient stays, and it counts in the mean.
    np.testing.assert_allclose(weights[1], [0.9 + 0.4 / 3, 1, 0.9 + 0.4 / 9])
    np.testing.assert_array_equal(weights[2], np.ones(3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_leaves_the_weights(value):
    weighting = grad_norm_balance()
    first, state = weighting.update(jnp.array([1.0, 4.0]), weighting.init(2))
    second, _ = weighting.update(jnp.array([1.0, value]), state)
    np.testing.assert_array_equal(second, first)


@pytest.mark.usefixtures("own_errors")
def test_bad_hyperparameters_are_errors():
    with pytest.raises(ValueError, match="grad_norm_balance: decay") as error:
        grad_norm_balance(1.0)
    assert_message(error.value, "[0, 1)", "1.0")
