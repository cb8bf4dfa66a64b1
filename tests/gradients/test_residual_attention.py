"""Residual attention against its transcription, and inside a function of losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import residual_attention, value_and_term_grads
from tests._asserts import assert_finite, assert_message, assert_same_signature
from tests.references import residual_attention as reference

POINTS, STEPS = 20, 30


def residuals():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(size=(STEPS, 1)) + rng.normal(size=POINTS))
    return sizes * rng.normal(size=(STEPS, POINTS))


def run(attention, values):
    def step(state, now):
        weights, state = attention.update(now, state)
        return state, weights

    start = attention.init(values.shape[1])
    state, weights = jax.lax.scan(step, start, jnp.asarray(values))
    assert_same_signature(state, start)
    return np.asarray(weights), state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"gamma": 0.9, "eta": 0.5}], ids=str)
def test_transcription(options, record_deviation):
    found, _ = run(residual_attention(**options), residuals())
    options = {"gamma": 0.999, "eta": 0.01, **options}
    expected = reference.residual_attention(residuals(), **options)
    record_deviation("residual_attention", np.max(np.abs(found / expected - 1)))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_weights_stay_below_their_bound():
    worst = np.ones((300, 2)) * [1.0, 0.5]
    found, _ = run(residual_attention(0.9, 0.2), worst)
    np.testing.assert_allclose(found[-1], [2.0, 1.0], rtol=1e-5)
    assert np.all(found < 2.0 + 1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-15, 1e15, 1e30])
def test_at_every_scale(scale):
    values = residuals()
    plain, _ = run(residual_attention(), values)
    found, _ = run(residual_attention(), np.float32(scale * values))
    assert_finite(found)
    np.testing.assert_allclose(found, plain if scale else 0 * plain, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_residual_that_is_not_finite_counts_as_zero(value):
    attention = residual_attention()
    update = jax.jit(attention.update)
    weights, _ = update(np.float32([1.0, value, -2.0]), attention.init(3))
    np.testing.assert_allclose(weights, [0.005, 0, 0.01], rtol=1e-6)


def test_inside_the_losses_the_weights_are_constants():
    attention, x = residual_attention(), np.float32([1.0, -2.0, 0.5])

    def losses_fn(w, state):
        residual = w * x
        weights, state = attention.update(residual, state)
        return [jnp.mean((weights * residual) ** 2), w**2], state

    start = attention.init(3)
    of_terms = jax.jit(value_and_term_grads(losses_fn, has_aux=True))
    (_, state), grads = of_terms(2.0, start)
    weights = 0.01 * np.abs(x) / 2
    np.testing.assert_allclose(state.weights, weights, rtol=1e-6)
    expected = [np.mean(2 * weights**2 * 2 * np.square(x)), 4.0]
    np.testing.assert_allclose(grads, expected, rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: residual_attention(gamma=1.1), ["gamma", "[0, 1]", "1.1"]),
        (lambda: residual_attention(eta=-1.0), ["eta", "[0, inf)", "-1.0"]),
        (lambda: residual_attention().init(0), ["num_points", "at least 1", "0"]),
        (lambda: residual_attention().init(2.0), ["num_points", "int", "2.0"]),
        (
            lambda: residual_attention().update(
                jnp.ones((3, 1)), residual_attention().init(3)
            ),
            ["residuals", "(3,)", "num_points=3", "(3, 1)"],
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert_message(error.value, "residual_attention: ", *words)
