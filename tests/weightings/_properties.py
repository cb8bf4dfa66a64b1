"""What a gramian method promises, as named assertions on its direction.

A method is given as a function of a Jacobian [K, P] that returns its weights, [K] or
a mixing matrix [K, K]. Directions are formed and judged in float64.
"""

import numpy as np

from tests.references.min_norm import min_norm_point


def direction(weights, rows):
    """The sum of the terms after weighting, or mixing."""
    weights = np.asarray(weights, np.float64)
    total = weights if weights.ndim == 1 else weights.sum(axis=0)
    return total @ np.asarray(rows, np.float64)


def longest(rows):
    """Length of the longest gradient."""
    return np.linalg.norm(np.asarray(rows, np.float64), axis=1).max(initial=0.0)


def tolerance(rows):
    """What the dtype of the gradients allows, relative to the longest."""
    return 2e-5 if np.asarray(rows).dtype == np.float32 else 1e-7


def assert_finite(method, rows):
    """Finite weights and a finite direction, whatever the gradients."""
    weights = np.asarray(method(rows), np.float64)
    assert np.all(np.isfinite(weights)), weights
    assert np.all(np.isfinite(direction(weights, rows)))


def assert_permutes(method, rows, order):
    """The direction does not depend on the order of the terms."""
    plain = direction(method(rows), rows)
    permuted = direction(method(rows[order]), rows[order])
    np.testing.assert_allclose(
        permuted, plain, rtol=0, atol=tolerance(rows) * longest(rows)
    )


def assert_weights_sum_to_one(method, rows):
    """Weights on the simplex."""
    weights = np.asarray(method(rows), np.float64)
    assert np.all(weights >= 0), weights
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-5)


def assert_invariant_to_scale(method, rows, factor):
    """The weights do not change when all gradients are multiplied by one factor."""
    factor = np.asarray(factor, rows.dtype)
    plain = direction(method(rows), rows)
    scaled = direction(method(rows * factor), rows)
    np.testing.assert_allclose(
        scaled, plain, rtol=0, atol=tolerance(rows) * longest(rows)
    )


def assert_conflicts_with_no_term(method, rows):
    """J d >= 0: no gradient points against the direction."""
    found = direction(method(rows), rows)
    along = np.asarray(rows, np.float64) @ found
    size = longest(rows)
    assert along.min() >= -tolerance(rows) * size * size, (along.min(), size)


def assert_min_norm(method, rows):
    """The optimality conditions of the min-norm point: g_i . d >= d . d."""
    found = direction(method(rows), rows)
    size = longest(rows)
    slack = np.asarray(rows, np.float64) @ found - found @ found
    assert slack.min() >= -tolerance(rows) * size * size, (slack.min(), size)
    expected, _ = min_norm_point(rows)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=10 * tolerance(rows) * size
    )


def assert_single_gradient_untouched(method, rows):
    """K = 1: the direction is the gradient."""
    np.testing.assert_allclose(
        direction(method(rows[:1]), rows[:1]), rows[0], rtol=1e-6
    )


def assert_zero_for_zero(method, rows):
    """Zero gradients give a zero direction."""
    zeros = np.zeros_like(rows)
    assert_finite(method, zeros)
    assert not direction(method(zeros), zeros).any()
