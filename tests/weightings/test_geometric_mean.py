"""The weights of the geometric mean, against its derivatives."""

import numpy as np
import pytest

from multiterm_optax import geometric_mean
from tests._asserts import assert_identical
from tests._problems import sizes
from tests.weightings._runs import deviation, random_losses, run


def derivatives(losses):
    """By complex steps, each exact to rounding."""
    K, h = len(losses), 1e-200
    shifted = losses + 1j * h * np.eye(K)
    return np.prod(shifted ** (1 / K), axis=1).imag / h


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(3, slow=(1, 2, 10)))
def test_transcription(terms, rng, record_deviation):
    losses = random_losses(rng, 40, terms)
    found, _ = run(geometric_mean(), losses)
    largest = deviation(found, np.stack([derivatives(row) for row in losses]))
    record_deviation("geometric_mean", largest)
    assert largest <= 1e-12


def test_each_term_counts_by_the_share_of_its_loss(rng):
    losses = np.float32(random_losses(rng, 40, 4) * [1e-15, 1.0, 1e15, -1.0])
    weights, _ = run(geometric_mean(), losses)
    parts = weights * np.abs(losses)
    means = np.exp(np.mean(np.log(np.abs(np.float64(losses))), axis=1)) / 4
    np.testing.assert_allclose(parts, np.tile(means[:, None], 4), rtol=2e-6)


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_a_loss_without_a_logarithm_is_left_out(bad):
    losses = np.array([[1.0, bad, 100.0], [bad, bad, bad]])
    weights, _ = run(geometric_mean(), losses)
    np.testing.assert_allclose(weights[0], np.array([10.0, 1.0, 0.1]) / 3, rtol=1e-6)
    assert_identical(weights[1], np.full(3, np.float32(1 / 3)))
