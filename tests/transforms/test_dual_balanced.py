"""Dual balancing against its transcription, and in its limits."""

import numpy as np
import pytest

from multiterm_optax import dual_balanced
from tests._asserts import assert_message
from tests._runs import first_step
from tests.references import dual_balanced as reference
from tests.transforms import _balancers as steps
from tests.transforms._balancers import K


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "anchor"), [(3, 0), (3, 2), (2, 0), (4, 1)])
def test_transcription(terms, anchor, record_deviation):
    rows, losses = steps.draw(terms=terms)
    updates, states = steps.run(dual_balanced(terms, anchor=anchor), rows, losses)
    expected = reference.dual_balanced(rows, losses, anchor=anchor)
    largest = steps.deviation(updates, rows, expected)
    record_deviation("dual_balanced", largest)
    assert largest <= 1e-12
    np.testing.assert_allclose(states.averages, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_first_step_shares_in_equal_parts():
    rows, losses = steps.draw(steps=1)
    _, states = steps.run(dual_balanced(K), rows, losses)
    ratios = np.max(np.abs(rows[0, 0])) / np.mean(np.abs(rows[0, 1:]), axis=1)
    np.testing.assert_allclose(states.averages[0], [1, *[ratios.sum() / 2] * 2])


def test_the_condition_that_is_hardest_gets_most():
    rows = np.repeat(steps.draw(steps=1)[0], 5, axis=0)
    losses = np.stack([np.ones(5), 0.5 ** np.arange(5), np.ones(5)], axis=1)
    _, states = steps.run(dual_balanced(K), rows, losses)
    assert np.all(np.diff(states.averages[:, 1]) < 0)
    assert np.all(np.diff(states.averages[:, 2]) > 0)
    # Together they have what the gradients say, and that stays.
    sums = states.averages[:, 1:].sum(axis=1)
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)


def test_awkward_gradients_and_losses_are_finite_and_the_scale_does_not_matter():
    states = steps.assert_awkward_is_finite(dual_balanced(K))
    for averages in states.averages[1:]:
        np.testing.assert_allclose(averages, states.averages[0], rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_the_scale_of_each_loss_does_not_matter_and_its_sign_neither():
    rows, losses = steps.draw()
    plain, _ = steps.run(dual_balanced(K), rows, losses)
    scaled, _ = steps.run(dual_balanced(K), rows, losses * [1e-15, -1e15, 3.0])
    np.testing.assert_allclose(scaled, plain, rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_what_is_not_finite_leaves_a_term_s_means(value, where):
    rows, losses = steps.draw(steps=3)
    if where == "gradient":
        rows[1, 2, 4] = value
    else:
        losses[1, 2] = value
    _, states = steps.run(dual_balanced(K), rows, losses)
    for field in states:
        assert np.all(np.isfinite(field))
        assert field[1, 2] == field[0, 2]
    np.testing.assert_array_equal(states.seen, [[0, 1, 1], [0, 2, 1], [0, 3, 2]])


def test_losses_that_are_all_zero_share_in_equal_parts():
    rows, _ = steps.draw(steps=2)
    _, states = steps.run(dual_balanced(K), rows, np.zeros((2, K)))
    np.testing.assert_allclose(states.averages[:, 1], states.averages[:, 2])


def test_one_term_stays_as_it_is():
    tx, grads = dual_balanced(1), np.float32([[3.0, -4.0]])
    updates, _ = first_step(tx, grads, losses=np.ones(1))
    np.testing.assert_array_equal(updates, grads)


@pytest.mark.usefixtures("own_errors")
def test_errors():
    with pytest.raises(ValueError, match="dual_balanced: anchor") as error:
        dual_balanced(K, anchor=3)
    assert_message(error.value, "[0, 2]", "found 3")
    tx, grads = dual_balanced(2), np.ones((2, 3))
    with pytest.raises(ValueError, match="this weighting reads the losses"):
        first_step(tx, grads)
