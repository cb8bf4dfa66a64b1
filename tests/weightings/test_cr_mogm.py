"""CR-MOGM: the moving average, whatever the weighting gives and reads."""

import jax
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_zero,
)
from tests._methods import Method
from tests.references.min_norm import min_norm_point
from tests.weightings import _runs

METHODS = {
    "cr_mogm": Method(
        mt.cr_mogm, {"weighting": lambda terms: mt.mgda()}, simplex=True, pareto=True
    ),
    "cr_mogm, mixing": Method(lambda: mt.cr_mogm(mt.upgrad(rows=True))),
    "cr_mogm, losses": Method(lambda: mt.cr_mogm(mt.by_loss(0.5), 0.5)),
}


def formula(found, decay):
    """The moving average of the paper, from equal weights."""
    smoothed, last = [], np.full(found.shape[1], 1 / found.shape[1])
    for one in found:
        last = decay * last + (1 - decay) * one
        smoothed.append(last)
    return np.stack(smoothed)


@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_agrees_with_the_formula(x64, record_deviation, rng, decay):
    rows = rng.normal(size=(30, 3, 8)) * np.exp(rng.normal(size=(30, 3, 1)))
    found = np.stack([min_norm_point(J)[1] for J in rows])
    gramians = rows @ np.swapaxes(rows, 1, 2)
    smoothed, _ = _runs.run(mt.cr_mogm(mt.mgda(), decay), np.ones((30, 3)), gramians)
    deviation = _runs.deviation(smoothed, formula(found, decay))
    record_deviation("cr_mogm", deviation)
    assert deviation < 1e-7


WEIGHTINGS = {
    "mgda": mt.mgda,
    "by_norm": mt.by_norm,
    "dwa": mt.dwa,
    "pcgrad": lambda: mt.pcgrad(jax.random.key(0)),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_without_decay_it_is_the_weighting(name, rng):
    weighting = WEIGHTINGS[name]()
    smoothed = mt.cr_mogm(weighting, decay=0.0)
    for reads in ("reads_gramian", "reads_norms", "reads_losses"):
        assert getattr(smoothed, reads) == getattr(weighting, reads)
    losses = _runs.random_losses(rng, 5, 3).astype(np.float32)
    rows = rng.normal(size=(5, 3, 4)).astype(np.float32)
    gramians = rows @ np.swapaxes(rows, 1, 2)
    both = [weighting, smoothed]
    (expected, _), (found, _) = _runs.run_each(both, losses, gramians)
    assert_identical(found, expected)


def test_a_mixing_matrix_begins_with_a_part_of_the_identity():
    smoothed = mt.cr_mogm(mt.pcgrad(jax.random.key(0)), decay=0.75)
    rows = np.float32([[1, 0], [-1, 1]])
    first = jax.jit(lambda gramian: smoothed.update(gramian, smoothed.init(2)))
    mixing, _ = first(rows @ rows.T)
    surgery = np.array([[1, 0.5], [1, 1]])
    assert_close(mixing, np.float32(0.75 * np.eye(2) / 2 + 0.25 * surgery), rtol=1e-6)


def test_absent_terms_keep_their_average(x64, rng):
    weighting = mt.cr_mogm(mt.by_norm(0.0, anchor="mean"), 0.5)
    update, state = jax.jit(weighting.update), weighting.init(3)
    norms, two = np.array([1.0, 4.0, 9.0]), np.array([True, False, True])
    # The last two steps have two terms: so has the share of the first weights.
    _, state = update(norms, state)
    before = state
    for _ in range(2):
        weights, state = update(norms, state, present=two)
    state, before = jax.tree.map(np.asarray, (state, before))
    assert_identical(state.average[1], before.average[1])
    assert_identical(state.initial, np.array([0.125, 0.5, 0.125]))
    # These are squared norms, and the mean is the geometric one.
    three = np.array([6 ** (1 / 3), 6 ** (1 / 3) / 2, 6 ** (1 / 3) / 3])
    pair = np.array([3**0.5, 3**-0.5])
    expected = 0.125 / 2 + 0.125 * three[two] + 0.75 * pair
    assert_close(weights, np.array([expected[0], 0.0, expected[1]]), rtol=1e-12)


def test_a_skipped_step_is_not_averaged():
    weighting = mt.cr_mogm(mt.inexact_mgda(0.3), 0.5)
    tx = mt.weighted(weighting, optax.sgd(0.1, momentum=0.9), 2)
    update, params = jax.jit(tx.update), np.zeros(2, np.float32)
    agreed, opposed = np.eye(2), np.array([[1.0, 0.0], [-1.0, 0.1]])
    agreed, opposed = np.float32(agreed), np.float32(opposed)
    _, before = update(agreed, tx.init(params), params)
    updates, after = update(opposed, before, params)
    assert_zero(updates)
    assert_identical(after.inner, before.inner)
    assert_zero(after.reweight.weights)
    average = after.reweight.weighting.average
    assert_identical(average, before.reweight.weighting.average)
    updates, after = update(agreed, after, params)
    assert np.all(np.asarray(updates) < 0)
    assert_close(after.reweight.weights, np.array([0.5, 0.5]), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_any_scale(scale, rng):
    rows = (scale * rng.normal(size=(10, 3, 5))).astype(np.float32)
    gramians = rows @ np.swapaxes(rows, 1, 2)
    gramians[3:5] = 0
    found, state = _runs.run(mt.cr_mogm(mt.mgda()), np.ones((10, 3)), gramians)
    assert_finite((found, state))
    assert_close(found.sum(axis=1), np.ones(10), rtol=1e-6)


def test_what_is_refused(own_errors):
    with pytest.raises(TypeError, match="weighting must") as error:
        mt.cr_mogm(mt.mgda)
    assert_message(error.value, "cr_mogm", "did you mean mgda()?")
    with pytest.raises(ValueError, match="decay must") as error:
        mt.cr_mogm(mt.mgda(), 1.0)
    assert_message(error.value, "cr_mogm", "[0, 1)", "found 1.0")
