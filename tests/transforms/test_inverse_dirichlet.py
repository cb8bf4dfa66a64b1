"""Inverse-Dirichlet weights against their transcription, and in their limits."""

import numpy as np
import pytest

from multiterm_optax import inverse_dirichlet
from tests._asserts import assert_message
from tests._runs import first_step
from tests.references import inverse_dirichlet as reference
from tests.transforms import _balancers as steps
from tests.transforms._balancers import K


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"decay": 0.0}], ids=str)
def test_transcription(options, record_deviation):
    rows, losses = steps.draw()
    updates, states = steps.run(inverse_dirichlet(K, **options), rows, losses)
    expected = reference.inverse_dirichlet(rows, **{"decay": 0.5, **options})
    largest = steps.deviation(updates, rows, expected)
    record_deviation("inverse_dirichlet", largest)
    assert largest <= 1e-12
    np.testing.assert_allclose(states.averages, expected, rtol=1e-12)
    assert np.all(expected >= 1)


@pytest.mark.usefixtures("x64")
def test_afterwards_all_gradients_spread_alike():
    rows, losses = steps.draw(steps=1)
    updates, _ = steps.run(inverse_dirichlet(K, decay=0.0), rows, losses)
    np.testing.assert_allclose(np.std(updates[0], axis=1), np.std(rows, axis=2).max())


def test_awkward_gradients_are_finite_and_the_scale_does_not_matter():
    states = steps.assert_awkward_is_finite(inverse_dirichlet(K))
    for averages in states.averages[1:]:
        np.testing.assert_allclose(averages, states.averages[0], rtol=1e-5)


def test_a_spread_that_is_small_against_the_mean_keeps_its_digits():
    # In float32 a mean of squares less a squared mean would leave nothing of it.
    numbers = np.float32([1.0, 1.0 + 2.0**-12, 1.0 - 2.0**-12, 1.0])
    rows = np.stack([numbers, np.float32([1.0, -1.0, 1.0, -1.0])])
    tx = inverse_dirichlet(2, decay=0.0)
    _, state = first_step(tx, rows)
    expected = 1 / np.std(np.float64(numbers))
    np.testing.assert_allclose(state.averages, [expected, 1.0], rtol=1e-6)


def test_no_spread_leaves_the_weight():
    tx = inverse_dirichlet(2)
    grads = np.float32([[3.0, 3.0], [1.0, 2.0]])
    updates, state = first_step(tx, grads)
    np.testing.assert_array_equal(state.averages, [1.0, 1.0])
    np.testing.assert_array_equal(updates, grads)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_leaves_the_weights(value):
    rows = steps.draw(steps=2)[0]
    rows[1, 2, 4] = value
    _, states = steps.run(inverse_dirichlet(K), rows, np.ones((2, K)))
    np.testing.assert_array_equal(states.averages[1], states.averages[0])
    assert np.ptp(states.averages[0]) > 1


@pytest.mark.usefixtures("own_errors")
def test_bad_hyperparameters_are_errors():
    with pytest.raises(ValueError, match="inverse_dirichlet: decay") as error:
        inverse_dirichlet(K, decay=-0.1)
    assert_message(error.value, "[0, 1)", "-0.1")
