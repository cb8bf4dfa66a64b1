"""MoDo against its algorithm, with one, two and three batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import modo
from tests import _runs
from tests._asserts import assert_finite, assert_identical, assert_message
from tests.references import modo as reference

K, STEPS = 3, 30


@pytest.mark.parametrize(
    ("number", "masked"), [(1, False), (2, False), (3, False), (3, True)]
)
def test_agrees_with_its_algorithm(x64, record_deviation, number, masked):
    given = _runs.batches(STEPS, K)[:number]
    present = _runs.masks(STEPS, K) if masked else np.ones((STEPS, K), bool)
    spoiled = np.where(present[..., None], given, np.nan)
    tx = modo(K, lambda count: 0.05 / (count + 1.0) ** 0.5, rho=0.1)
    found, states = _runs.follow(tx, spoiled, present if masked else None)
    three = {1: [0, 0, 0], 2: [0, 1, 0], 3: [0, 1, 2]}[number]
    expected = reference.modo(
        *(given[i] for i in three), present, gamma=lambda t: 0.05 / t**0.5, rho=0.1
    )
    off = _runs.deviation(found, expected)
    record_deviation("modo", off)
    assert off < 1e-13
    if not masked:  # neither the corner nor equal weights, or this says little
        assert 0.05 < np.min(states.weights[-1]) < 0.3


def test_single_precision(record_deviation):
    given = _runs.batches(STEPS, K)
    found, _ = _runs.follow(modo(K, 0.02, rho=0.0), given, dtype=jnp.float32)
    present = np.ones((STEPS, K), bool)
    expected = reference.modo(*given, present, gamma=lambda t: 0.02, rho=0.0)
    off = _runs.deviation(found, expected)
    record_deviation("modo, float32", off)
    assert off < 3e-6


def test_noise_in_the_gradients_does_not_move_the_weights_on_average(x64):
    # Two gradients of one length, the second one noisy: by their gramian the noisy one
    # would be the longer, and would lose its weight.
    rng = np.random.default_rng(0)
    signal = np.eye(2, _runs.SIZE)
    noise = rng.normal(size=(2, 2000, 2, _runs.SIZE)) * np.array([0.0, 1.0])[:, None]

    tx, (first, second) = modo(2, 0.002, rho=0.0), signal + noise

    def last(second):
        _, states = _runs.follow(tx, [first, second])
        return np.mean(states.weights[1000:], axis=0)

    np.testing.assert_allclose(last(second), [0.5, 0.5], atol=0.05)
    assert last(first)[1] < 0.15


SMALL = modo(3)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_sizes(size):
    rows = np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    grads = np.float32(size * rows)
    updates, state = _runs.first_step(SMALL, grads, grads_2=-grads, grads_3=grads)
    assert_finite((updates, state))
    assert np.sum(state.weights) == pytest.approx(1, rel=1e-6)


def test_one_term_is_its_third_batch():
    given = np.random.default_rng(0).normal(size=(3, 1, 4)).astype(jnp.bfloat16)
    first, second, third = given
    found, _ = _runs.first_step(modo(1), first, grads_2=second, grads_3=third)
    assert found.dtype == jnp.bfloat16
    assert_identical(found, third)


GRADS = {"w": np.ones((2, 3))}
BAD = {
    "grads_2, summed": ({"grads_2": {"w": np.ones(3)}}, "grads_2['w'] must have"),
    "grads_3, another tree": ({"grads_3": {"v": np.ones((2, 3))}}, "grads_3 must"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches_are_named(case):
    extra, words = BAD[case]
    tx = modo(2)
    with pytest.raises(ValueError, match="modo") as caught:
        _runs.first_step(tx, GRADS, **extra)
    assert_message(caught.value, words, "found")


@pytest.mark.parametrize("argument", ["gamma", "rho"])
def test_bad_arguments_are_named(own_errors, argument):
    with pytest.raises(ValueError, match=f"{argument} must be") as caught:
        modo(2, **{argument: -1.0})
    assert_message(caught.value, "modo", "found -1.0")
