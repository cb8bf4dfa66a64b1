"""IMTL-G against the printed formula."""

import numpy as np
import pytest

from multiterm_optax import imtl_g
from tests._methods import Method
from tests.references import imtl_g as reference
from tests.weightings import _awkward

# Where the sum that divides its weights is near zero its steps are as long as the
# formula says. Adam remembers them for long, and in the battery it need not arrive.
METHODS = {"imtl_g": Method(imtl_g, converges=False)}
BATCH = len(_awkward.ROWS)

solve = _awkward.batched(imtl_g())


def full_rank(seed, terms, count):
    """Random gradients no direction of which is nearly lost, with any cosines."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        rows = rng.normal(size=(terms, 2 * terms))
        if len(found) % 2:
            rows[1:] += rng.choice([-3, 3], size=(terms - 1, 1)) * rows[0]
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        if np.linalg.svd(rows, compute_uv=False).min() > 0.05:
            found.append(rows * 10.0 ** rng.uniform(-3, 3, (terms, 1)))
    return np.stack(found)


def deviations(rows):
    """Largest gaps of weights and direction, relative to their size."""
    exact, largest = rows.astype(np.float64), 0.0
    found, state = solve(rows)
    assert not state.stationary.any()
    for one, weights, turned in zip(exact, found, state.turned, strict=True):
        expected = reference.weights(one)
        # The printed formula never turns.
        gap = (-1 if turned else 1) * weights - expected
        largest = max(
            largest,
            np.abs(gap).max() / np.abs(expected).max(),
            np.linalg.norm(gap @ one) / np.linalg.norm(expected @ one),
        )
    return largest


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(3, BATCH), (10, 10)])
def test_agrees_with_the_printed_formula(terms, count, record_deviation):
    deviation = deviations(full_rank(terms, terms, count))
    record_deviation("imtl_g", deviation)
    assert deviation < 1e-9


def test_agrees_with_the_printed_formula_in_single_precision(record_deviation):
    deviation = deviations(full_rank(0, 3, BATCH).astype(np.float32))
    record_deviation("imtl_g, float32", deviation)
    # The cosines are known to a rounding, and the solution to 1 / 0.05^2 of it.
    assert deviation < 2e-4


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(2, 2000), (3, 2000), (8, 500), (24, 50)])
def test_thousands_of_problems(terms, count):
    assert deviations(full_rank(100 + terms, terms, count)) < 1e-8


def test_known_numbers():
    weights, _ = solve(np.float32([[[-4, 1, 1], [6, 1, 1]]]))
    np.testing.assert_allclose(weights[0], [0.5923, 0.4077], atol=5e-5)


def test_projections_on_unit_gradients_are_equal_and_positive():
    rows = full_rank(1, 3, BATCH).astype(np.float32)
    weights, state = solve(rows)
    units = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    found = np.einsum("nk,nkp->np", weights, rows)
    along = np.einsum("nkp,np->nk", units, found)
    assert np.all(along > 0)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    assert np.max(np.ptp(along, axis=1) / length[:, 0]) < 1e-4
    sums = np.where(state.turned, -1, 1)
    assert 0 < np.sum(state.turned) < BATCH
    np.testing.assert_allclose(weights.sum(axis=1), sums, rtol=1e-5)


# The second lies between the other two, and its weight has another sign.
POLE = [[1, 0.2, 0], [0.8, 0.9, 0.1], [0.2, 0.9, -0.3]]


def test_a_sum_of_weights_near_zero_stays_finite():
    """Lengths for which the sum that divides the weights changes its sign."""
    units = np.array(POLE) / np.linalg.norm(POLE, axis=1)[:, None]
    solution = np.linalg.solve(units @ units.T, np.ones(3))
    negative = np.argmin(solution)
    assert solution[negative] < 0
    others = np.delete(solution, negative).sum()
    at = -solution[negative] / others  # its length where the sum is zero
    lengths = np.ones((BATCH, 3))
    steps = np.r_[-(10.0 ** -np.arange(1, 8)), 0.0, 10.0 ** -np.arange(1, 7)]
    lengths[:, negative] = at * (1 + steps)
    weights, state = solve((units * lengths[:, :, None]).astype(np.float32))
    assert np.all(np.isfinite(weights))
    assert state.turned[0]
    assert not state.turned[8]
    np.testing.assert_allclose(weights[[0, 8]].sum(axis=1), [-1, 1], rtol=1e-5)


@pytest.fixture(scope="module")
def awkward():
    return {scale: _awkward.solutions(solve, scale) for scale in _awkward.SCALES}


STATIONARY = [*_awkward.OPPOSED, "two dimensions"]


@pytest.mark.parametrize("scale", _awkward.SCALES)
@pytest.mark.parametrize("name", _awkward.ROWS)
def test_awkward_gradients(name, scale, awkward):
    rows, weights, state = awkward[scale][name]
    silent = ~rows.any(axis=1)
    assert np.all(np.isfinite(weights))
    assert not weights[silent].any()
    assert not state.turned
    np.testing.assert_allclose(weights.sum(), not silent.all(), atol=1e-6)
    if "nearly" not in name:
        assert bool(state.stationary) == (name in STATIONARY)
    rows = rows[~silent]
    units = rows / np.linalg.norm(rows, axis=1)[:, None]
    found = weights[~silent] @ rows
    along = units @ found / scale
    if state.stationary:
        assert np.abs(found).max() < 1e-6 * np.linalg.norm(rows, axis=1).max()
    elif not silent.all():
        np.testing.assert_allclose(along, along.mean(), rtol=2e-3)


def test_equal_gradients_share_a_weight(awkward):
    np.testing.assert_allclose(awkward[1.0]["equal"][1], np.full(3, 1 / 3), rtol=1e-5)
    first, second, _ = awkward[1.0]["two equal"][1]
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_one_term_keeps_its_gradient():
    weights, state = solve(np.float32([[[3, 4]], [[1e-15, 0]], [[0, 0]]]))
    np.testing.assert_allclose(weights[:, 0], [1, 1, 0], rtol=1e-6)
    assert not state.turned.any()
