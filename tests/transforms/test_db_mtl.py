"""DB-MTL against Alg. 1."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import db_mtl, sum_terms
from tests import _runs
from tests._asserts import assert_finite, assert_message, assert_zero
from tests.references import db_mtl as reference

STEPS = 30
CASES = {
    "constant": (3, 0.9, 0.0, 1e-8, False),
    "falling": (3, 0.9, 0.5, 1e-8, False),
    "eps": (3, 0.5, 0.0, 0.3, False),
    "absent": (4, 0.8, 0.7, 0.0, True),
    "one": (1, 0.9, 0.5, 1e-8, False),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_algorithm_1(x64, record_deviation, case):
    terms, beta, s, eps, masked = CASES[case]
    grads, losses = _runs.draw(STEPS, terms, spread=6.0)
    present = _runs.masks(STEPS, terms) if masked else np.ones((STEPS, terms), bool)
    spoiled = [np.where(present[..., None], grads, np.nan)]
    spoiled.append(np.where(present, losses, np.nan))
    tx = db_mtl(terms, beta, s, eps=eps)
    found, _ = _runs.run(tx, *spoiled, present=present if masked else None)
    expected = reference.db_mtl(grads, losses, present, beta=beta, s=s, eps=eps)
    deviation = _runs.deviation(found, expected)
    record_deviation("db_mtl", deviation)
    assert deviation < 1e-13


def test_single_precision(record_deviation):
    grads, losses = _runs.draw(STEPS, 3, spread=6.0)
    found, _ = _runs.run(db_mtl(3), grads, losses)
    present = np.ones((STEPS, 3), bool)
    expected = reference.db_mtl(grads, losses, present, beta=0.9, s=0.0, eps=1e-8)
    deviation = _runs.deviation(found, expected)
    record_deviation("db_mtl, float32", deviation)
    assert deviation < 2e-6


def test_all_are_as_long_as_the_longest(x64):
    grads, losses = _runs.draw(5, 3, spread=6.0)
    rows, states = _runs.run(db_mtl(3), grads, losses)
    longest = np.linalg.norm(_runs.joined(states[1].ema, 2), axis=2).max(axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=2), np.tile(longest[:, None], 3), rtol=1e-12
    )


WITHOUT_EPS = db_mtl(3, eps=0.0)


def test_a_factor_of_a_loss_makes_no_difference(x64):
    grads, losses = _runs.draw(5, 3)
    factors = np.array([1e-6, 1.0, 1e6])
    plain, _ = _runs.run(WITHOUT_EPS, grads, losses)
    scaled, _ = _runs.run(WITHOUT_EPS, factors[:, None] * grads, factors * losses)
    assert _runs.deviation(scaled, plain) < 1e-12


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_sizes_and_losses_that_are_zero_or_negative(size):
    rows = np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    grads, tx = np.float32(size * rows), WITHOUT_EPS
    for losses in ([1.0, 1.0, 1.0], [0.0, -1.0, 0.0], [1e-15, 1.0, 1e15]):
        losses = np.float32(size) * np.float32(losses)
        updates, state = _runs.first_step(tx, grads, losses=losses)
        assert_finite((updates, state))
        assert_zero(updates[2])
        assert np.all(updates[1] <= 0)  # down, whatever the loss's sign
    assert_zero(_runs.first_step(tx, grads, losses=np.zeros(3, np.float32))[0])


def test_lengths_beyond_the_range_stay_as_they_are():
    grads, losses = np.float32([[1e15, 0.0], [0.0, 1.0]]), np.float32([1e-15, 1.0])
    updates, _ = _runs.first_step(db_mtl(2, 0.0, eps=0.0), grads, losses=losses)
    np.testing.assert_allclose(updates, [[1e30, 0.0], [0.0, 1.0]], rtol=1e-6)


def test_bfloat16_parameters_have_averages_in_float32():
    tx = optax.chain(db_mtl(2, 0.999), sum_terms())
    grads, losses = np.ones((2, 3), jnp.bfloat16), np.ones(2, np.float32)
    start = jax.eval_shape(tx.init, grads[0])
    updates, state = jax.eval_shape(tx.update, grads, start, losses=losses)
    assert updates.dtype == jnp.bfloat16
    assert optax.tree.get(state, "ema").dtype == jnp.float32


@pytest.mark.parametrize("argument", ["decay", "power", "eps"])
def test_bad_arguments_are_named(own_errors, argument):
    with pytest.raises(ValueError, match=f"{argument} must be") as caught:
        db_mtl(2, **{argument: -1.0})
    assert_message(caught.value, "db_mtl", "found -1.0")


def test_missing_losses_are_named():
    tx = db_mtl(2)
    with pytest.raises(ValueError, match="db_mtl: this weighting reads the losses"):
        _runs.first_step(tx, np.ones((2, 3)))
