"""ExcessMTL against its formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import excess_mtl
from tests import _runs
from tests._asserts import assert_close, assert_finite, assert_identical, assert_message
from tests.references import excess_mtl as reference

STEPS = 30
CASES = {
    "three": (3, 0.1, 0.0, False),
    "authors' eps": (3, 0.1, 1e-7, False),
    "absent": (4, 0.3, 0.0, True),
    "one": (1, 0.1, 0.0, False),
    "large steps": (3, 3.0, 0.0, False),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_its_formulas(x64, record_deviation, case):
    terms, eta, eps, masked = CASES[case]
    grads, _ = _runs.draw(STEPS, terms, spread=6.0)
    grads[:2, 0] = 0  # the first term wakes late
    grads[:, -1, 3] = 0  # and the last never moves one element
    present = _runs.masks(STEPS, terms) if masked else np.ones((STEPS, terms), bool)
    spoiled = np.where(present[..., None], grads, np.nan)
    found, states = _runs.run(
        excess_mtl(terms, eta, eps=eps), spoiled, present=present if masked else None
    )
    weights = reference.excess_mtl(grads, present, eta=eta, eps=eps)
    expected = weights[..., None] * np.where(present[..., None], grads, 0)
    deviation = _runs.deviation(found, expected)
    record_deviation("excess_mtl", deviation)
    assert deviation < 1e-12
    np.testing.assert_allclose(states.weights, weights, rtol=1e-12)


def test_single_precision(record_deviation):
    grads, _ = _runs.draw(STEPS, 3, spread=6.0)
    present = np.ones((STEPS, 3), bool)
    found, _ = _runs.run(excess_mtl(3, 0.1), grads)
    weights = reference.excess_mtl(grads, present, eta=0.1, eps=0.0)
    deviation = _runs.deviation(found, weights[..., None] * grads)
    record_deviation("excess_mtl, float32", deviation)
    assert deviation < 3e-6


def test_the_first_step_leaves_the_weights_alone():
    grads, _ = _runs.draw(1, 3)
    found, states = _runs.run(excess_mtl(3, 1.0), grads)
    assert_identical(found, np.float64(np.float32(grads)))
    assert np.all(states.first > 0)


def test_a_factor_of_a_loss_makes_no_difference_without_eps(x64):
    grads, _ = _runs.draw(8, 3)
    factors = np.array([1e-12, 1.0, 1e12])
    tx = excess_mtl(3, 0.5)
    _, plain = _runs.run(tx, grads)
    _, scaled = _runs.run(tx, factors[:, None] * grads)
    assert_close(scaled.weights, plain.weights, rtol=1e-12)


def test_a_term_alone_is_left_alone():
    grads, _ = _runs.draw(4, 1)
    found, _ = _runs.run(excess_mtl(1, 0.5), grads)
    assert_identical(found, np.float64(np.float32(grads)))


LARGE = excess_mtl(3, 1.0)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_sizes(size):
    rows = np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    tx = LARGE
    grads = np.float32([size * factor * rows for factor in (1.0, 1e-3, 1e3)])
    updates, states = _runs.all_steps(tx, grads)
    assert_finite((updates, states))
    np.testing.assert_allclose(states.weights.sum(axis=1), 3, rtol=1e-6)


def test_a_term_that_explodes_gets_all_the_weight():
    grads = np.float32([[[f], [1.0]] for f in (1e-18, 1.0, 1.0, 1e-18)])
    updates, states = _runs.all_steps(excess_mtl(2, 1.0), grads)
    assert_finite((updates, states))
    np.testing.assert_array_equal(states.weights[-1], [2.0, 0.0])


def test_sums_are_kept_in_float32():
    updates, state = _runs.first_step(excess_mtl(2), np.ones((2, 3), jnp.bfloat16))
    assert updates.dtype == jnp.bfloat16
    assert state.sums.dtype == jnp.float32


@pytest.mark.parametrize("argument", ["eta", "eps"])
def test_bad_arguments_are_named(own_errors, argument):
    with pytest.raises(ValueError, match=f"{argument} must be") as caught:
        excess_mtl(2, **{argument: -1.0})
    assert_message(caught.value, "excess_mtl", "found -1.0")
