"""CoV weighting against a transcription that goes through the past in every step."""

import numpy as np
import pytest

from multiterm_optax import coefficient_of_variation
from tests._problems import sizes
from tests.references import coefficient_of_variation as reference
from tests.weightings._runs import deviation, random_losses, run


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(1, 2)))
def test_transcription(terms, rng, record_deviation):
    losses = random_losses(rng, 60, terms)
    found, _ = run(coefficient_of_variation(), losses)
    largest = deviation(found, reference.coefficient_of_variation(losses))
    record_deviation("coefficient_of_variation", largest)
    assert largest <= 1e-12


def test_long_runs_keep_their_digits(rng):
    losses = np.float32(1 + 1e-3 * rng.random((600, 2)) * [1.0, 2.0])
    found, _ = run(coefficient_of_variation(), losses)
    expected = reference.coefficient_of_variation(np.float64(losses))
    np.testing.assert_allclose(found[-1], expected[-1], rtol=1e-3)


def test_the_scale_of_a_loss_does_not_matter(rng):
    losses = np.float32(random_losses(rng, 30, 3))
    plain, _ = run(coefficient_of_variation(), losses)
    scales = np.float32([2.0**-50, 1.0, -(2.0**50)])
    scaled, _ = run(coefficient_of_variation(), losses * scales)
    np.testing.assert_array_equal(scaled, plain)


def test_what_stands_still_has_no_weight():
    losses = np.array([[3.0, 1.0], [3.0, 2.0], [3.0, 1.5]])
    weights, _ = run(coefficient_of_variation(), losses)
    expected = [[0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    weights, _ = run(coefficient_of_variation(), np.full((4, 3), 2.5))
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_is_left_out(bad):
    losses = np.array([[3.0, 1.0], [bad, 2.0], [2.0, 1.5]])
    weights, state = run(coefficient_of_variation(), losses)
    # The first term has two losses in the last step only.
    np.testing.assert_array_equal(weights[:2], [[0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_array_equal(state.seen, [2, 3])
    np.testing.assert_allclose(state.mean_loss, [2.5, 1.5], rtol=1e-6)
    assert np.all(np.isfinite(weights))
