"""The Chebyshev direction against Wolfe's algorithm on the unit gradients."""

import jax
import numpy as np
import pytest

from multiterm_optax import by_norm, chebyshev, compose, imtl_g, mgda
from tests._methods import Method
from tests.references.min_norm import min_norm_point
from tests.weightings import _awkward, _jacobians

METHODS = {"chebyshev": Method(chebyshev, simplex=True, agrees=True, digits=1e-6)}
BATCH = len(_awkward.ROWS)

solve = _awkward.batched(chebyshev())


def units_of(rows):
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def unit_direction(weights, rows):
    found = np.float64(weights) @ np.asarray(rows, np.float64)
    return found / np.linalg.norm(found)


def deviations(rows):
    """Gaps between the unit directions, times the best smallest cosine."""
    found, state = solve(rows)
    assert state.converged.all()
    gaps = []
    for one, weights in zip(rows, found, strict=True):
        expected, _ = min_norm_point(units_of(one.astype(np.float64)))
        size = np.linalg.norm(expected)
        gap = unit_direction(weights, one) - expected / size
        gaps.append(size * np.linalg.norm(gap))
    return max(gaps)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(3, BATCH), (10, 8)])
def test_is_the_min_norm_point_of_the_unit_gradients(terms, count, record_deviation):
    deviation = deviations(_awkward.random_batch(terms, terms, count))
    record_deviation("chebyshev", deviation)
    assert deviation < 1e-9


def test_is_that_in_single_precision(record_deviation):
    rows = _awkward.random_batch(0, 3, BATCH).astype(np.float32)
    deviation = deviations(rows)
    record_deviation("chebyshev, float32", deviation)
    assert deviation < 2e-5


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(2, 2000), (3, 2000), (8, 500), (24, 50)])
def test_thousands_of_problems(terms, count):
    rows = _awkward.random_batch(100 + terms, terms, count)
    assert deviations(rows) < 1e-7


def test_no_direction_has_a_better_smallest_cosine(rng):
    rows = _awkward.random_batch(1, 3, BATCH)
    found, _ = solve(rows.astype(np.float32))
    for one, weights in zip(rows, found, strict=True):
        best = np.min(units_of(one) @ unit_direction(weights, one))
        others = units_of(rng.normal(size=(500, one.shape[1])))
        near = units_of(unit_direction(weights, one) + 0.1 * others)
        assert np.min(units_of(one) @ np.r_[others, near].T, axis=0).max() < best + 1e-5


def test_is_mgda_after_norm_balancing_up_to_its_length():
    rows = _awkward.random_batch(2, 3, BATCH).astype(np.float32)
    found, _ = solve(rows)
    balanced = _awkward.batched(compose(by_norm(0.0, anchor="mean", eps=0.0), mgda()))
    same, _ = balanced(rows)
    for one, weights, others in zip(rows, found, same, strict=True):
        gap = unit_direction(weights, one) - unit_direction(others, one)
        assert np.linalg.norm(gap) < 1e-3


def test_is_imtl_g_where_all_terms_have_a_weight():
    rng = np.random.default_rng(0)
    lengths = 10.0 ** rng.uniform(-3, 3, (BATCH, 3, 1))
    rows = (_jacobians.generic(rng, BATCH * 3, 40).reshape(BATCH, 3, 40)) * lengths
    rows = rows.astype(np.float32)
    found, _ = solve(rows)
    assert np.all(found > 0)
    np.testing.assert_allclose(found, _awkward.batched(imtl_g())(rows)[0], rtol=1e-4)


@pytest.fixture(scope="module")
def awkward():
    return {scale: _awkward.solutions(solve, scale) for scale in _awkward.SCALES}


@pytest.mark.parametrize("scale", _awkward.SCALES)
@pytest.mark.parametrize("name", _awkward.ROWS)
def test_awkward_gradients(name, scale, awkward):
    rows, weights, state = awkward[scale][name]
    silent = ~rows.any(axis=1)
    assert state.converged
    assert np.all(weights >= 0)
    assert not weights[silent].any()
    np.testing.assert_allclose(weights.sum(), not silent.all(), atol=1e-6)
    if name in _awkward.OPPOSED:
        shortest = np.linalg.norm(rows[~silent], axis=1).min()
        assert np.linalg.norm(weights @ rows) < 1e-5 * shortest
    elif not silent.all():
        expected, _ = min_norm_point(units_of(rows[~silent]))
        # Of nearly opposed gradients the resultant is short, and known as far.
        size = np.linalg.norm(expected)
        gap = unit_direction(weights, rows) - expected / size
        assert size * np.linalg.norm(gap) < 1e-5


def test_one_term_keeps_its_gradient():
    weights, _ = jax.tree.map(np.asarray, solve(np.float32([[[3, 4]], [[1e-15, 0]]])))
    np.testing.assert_allclose(weights, 1, rtol=1e-6)
