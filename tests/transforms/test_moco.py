"""MoCo against Alg. 1, and what it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import moco, per_term, sum_terms
from multiterm_optax.transforms import ReweightState, _simplex
from tests import _runs
from tests._asserts import assert_close, assert_finite, assert_message
from tests.references import moco as reference

STEPS = 30


def rates(beta, beta_power, gamma, gamma_power):
    """As functions of t from 1, and as Optax schedules, which count from 0."""
    by_step = (lambda t: beta / t**beta_power), (lambda t: gamma / t**gamma_power)
    schedules = [lambda count, f=f: f(count + 1.0) for f in by_step]
    return by_step, schedules


CASES = {
    "three": (3, 0.0, (0.3, 0.0, 0.02, 0.0), False),
    "schedules": (3, 0.5, (0.9, 0.5, 0.05, 0.3), False),
    "absent": (4, 0.0, (0.4, 0.5, 0.02, 0.5), True),
    "one": (1, 0.1, (0.3, 0.0, 0.1, 0.0), False),
    "apart": (3, 0.1, (0.5, 0.0, 0.1, 0.0), False),
}


@pytest.mark.parametrize(
    "case",
    # With absent terms there are schedules, too.
    [
        pytest.param(case, marks=pytest.mark.slow if case == "schedules" else [])
        for case in CASES
    ],
)
def test_agrees_with_algorithm_1(x64, record_deviation, case):
    terms, rho, numbers, masked = CASES[case]
    (beta, gamma), schedules = rates(*numbers)
    grads, _ = _runs.draw(STEPS, terms, spread=6.0 if case == "apart" else 0.5)
    present = _runs.masks(STEPS, terms) if masked else np.ones((STEPS, terms), bool)
    constant = not (numbers[1] or numbers[3])
    given = (numbers[0], numbers[2]) if constant else schedules
    tx = moco(terms, *given, rho=rho)
    spoiled = np.where(present[..., None], grads, np.nan)
    found, states = _runs.run(tx, spoiled, present=present if masked else None)
    expected = reference.moco(grads, present, beta=beta, gamma=gamma, rho=rho)
    deviation = _runs.deviation(found, expected)
    record_deviation("moco", deviation)
    assert deviation < 1e-12
    weights = states[1].weights
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(axis=1), present.any(axis=1), rtol=1e-12)
    if case == "three":  # neither the corner nor equal weights, or this says little
        assert 0.05 < weights[-1].min() < 0.3


def test_single_precision(record_deviation):
    grads, _ = _runs.draw(STEPS, 3, spread=0.5)
    found, _ = _runs.run(moco(3, 0.3, 0.02), grads)
    present = np.ones((STEPS, 3), bool)
    expected = reference.moco(
        grads, present, beta=lambda t: 0.3, gamma=lambda t: 0.02, rho=0.0
    )
    deviation = _runs.deviation(found, expected)
    record_deviation("moco, float32", deviation)
    assert deviation < 3e-6


def test_is_per_term_and_reweight_in_turn():
    rows = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    alone = per_term(optax.ema(0.7, debias=False), 2)
    averages, expected = _runs.first_step(alone, rows)
    found, (tracked, weighted) = _runs.first_step(moco(2, 0.3), rows)
    assert isinstance(weighted, ReweightState)
    assert_close(tracked, expected, rtol=1e-6)
    assert_close(found, weighted.weights[:, None] * averages, rtol=1e-6)


def test_with_beta_1_and_small_steps_it_finds_the_min_norm_point(x64):
    grads = np.array([[2.0, 0.0], [0.0, 4.0]])
    found, states = _runs.run(
        optax.chain(moco(2, 1.0, 0.05)),
        np.tile(np.pad(grads, ((0, 0), (0, 9))), (200, 1, 1)),
    )
    np.testing.assert_allclose(states[0][1].weights[-1], [0.8, 0.2], rtol=1e-9)
    np.testing.assert_allclose(found[-1, :, :2], [[1.6, 0], [0, 0.8]], atol=1e-9)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_sizes(size):
    rows = np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    tx = moco(3)
    for factors in ([1, 1, 1], [1, 0, 1], [1, 1e-10, 1]):
        grads = np.float32(size * rows * np.array(factors)[:, None])
        updates, state = _runs.first_step(tx, grads)
        assert_finite((updates, state))
        assert np.sum(state[1].weights) == pytest.approx(1, rel=1e-6)


def test_bfloat16_parameters_have_averages_in_float32():
    tx = optax.chain(moco(2, 0.001), sum_terms())
    # In bfloat16 the average would soon stand still.
    updates, states = _runs.all_steps(tx, np.ones((30, 2, 3), jnp.bfloat16))
    assert updates.dtype == jnp.bfloat16
    averages = optax.tree.get(states, "ema")
    assert averages.dtype == jnp.float32
    np.testing.assert_allclose(averages[-1], 1 - 0.999**30, rtol=1e-5)


def test_projection_on_the_simplex_of_many_points(x64):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 7)) * 10.0 ** rng.uniform(-12, 12, size=(500, 1))
    found = np.asarray(jax.jit(jax.vmap(_simplex.project))(points))
    expected = np.array([reference.simplex(point) for point in points])
    # Bisection knows a number of size 1e12 to its last digit only.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    near = np.abs(points).max(axis=1) < 1e3
    np.testing.assert_allclose(found[near], expected[near], atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize("argument", ["beta", "gamma", "rho"])
def test_bad_arguments_are_named(own_errors, argument):
    with pytest.raises(ValueError, match=f"{argument} must be") as caught:
        moco(2, **{argument: -1.0})
    assert_message(caught.value, "moco", "found -1.0")
