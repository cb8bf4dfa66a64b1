"""Learning-rate annealing against its transcription, and in its limits."""

import itertools

import numpy as np
import optax
import pytest

from multiterm_optax import lr_annealing
from tests._asserts import assert_message
from tests._runs import first_step
from tests.references import lr_annealing as reference
from tests.transforms import _balancers as steps
from tests.transforms._balancers import K

OPTIONS = [
    {"decay": decay, "statistic": statistic, "anchor": anchor, "plain": plain}
    for decay, (statistic, anchor, plain) in zip(
        [0.9, 0.5, 0.99, 0.0] * 2,
        itertools.product(["max", "mean"], [0, 2], [False, True]),
        strict=True,
    )
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transcription(options, record_deviation):
    rows, losses = steps.draw()
    updates, states = steps.run(lr_annealing(K, **options), rows, losses)
    expected = reference.lr_annealing(rows, **options)
    largest = steps.deviation(updates, rows, expected)
    record_deviation("lr_annealing", largest)
    assert largest <= 1e-12
    np.testing.assert_allclose(states.averages, expected, rtol=1e-12)
    assert np.ptp(expected[-1]) > 0.1


@pytest.mark.usefixtures("x64")
def test_defaults_are_those_documented():
    rows, losses = steps.draw()
    updates, _ = steps.run(lr_annealing(K), rows, losses)
    expected = reference.lr_annealing(
        rows, decay=0.9, statistic="max", anchor=0, plain=False
    )
    assert steps.deviation(updates, rows, expected) <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("plain", "power"), [(False, 0.5), (True, 1.0)])
def test_constant_gradients_lead_to_the_ratio_or_to_its_root(plain, power):
    rows, _ = steps.draw(steps=1)
    still = np.repeat(rows, 400, axis=0)
    _, states = steps.run(lr_annealing(K, plain=plain), still, np.ones((400, K)))
    ratios = np.max(np.abs(rows[0, 0])) / np.mean(np.abs(rows[0]), axis=1)
    expected = np.where(np.arange(K) == 0, 1, ratios**power)
    np.testing.assert_allclose(states.averages[-1], expected, rtol=1e-9)


def test_awkward_gradients_are_finite_and_the_scale_does_not_matter():
    states = steps.assert_awkward_is_finite(lr_annealing(K))
    for averages in states.averages[1:]:
        np.testing.assert_allclose(averages, states.averages[0], rtol=1e-5)


def test_weights_stay_without_the_residual():
    tx = lr_annealing(K, decay=0.0)
    rows, _ = steps.draw(steps=2)
    rows[1, 0] = 0
    _, states = steps.run(tx, rows, np.ones((2, K)))
    np.testing.assert_array_equal(states.averages[1], states.averages[0])
    assert states.averages[0, 1] != 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_leaves_the_weights(value):
    tx, rows = lr_annealing(K, decay=0.5), steps.draw(steps=3)[0]
    spoiled = rows.copy()
    spoiled[1, 2, 4] = value
    _, states = steps.run(tx, spoiled, np.ones((3, K)))
    _, sound = steps.run(tx, rows, np.ones((3, K)))
    np.testing.assert_array_equal(states.averages[1, 2], states.averages[0, 2])
    np.testing.assert_array_equal(states.averages[:, 1], sound.averages[:, 1])
    assert np.all(np.isfinite(states.averages))


def test_one_term_stays_as_it_is():
    tx, grads = lr_annealing(1), np.float32([[3.0, -4.0]])
    updates, _ = first_step(tx, grads)
    np.testing.assert_array_equal(updates, grads)


def test_decay_may_be_traced():
    make = optax.inject_hyperparams(
        lr_annealing, static_args=("num_terms", "statistic", "anchor", "plain")
    )
    grads = steps.draw(steps=1)[0][0]
    found, plain = make(num_terms=K, decay=0.7), lr_annealing(K, 0.7)
    updates, _ = first_step(found, grads)
    expected, _ = first_step(plain, grads)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": 1.0}, ["decay", "[0, 1)", "1.0"]),
        ({"statistic": "median"}, ["statistic", "'max', 'mean'", "'median'"]),
        ({"anchor": 3}, ["anchor", "[0, 2]", "3"]),
        ({"plain": "yes"}, ["plain", "False, True", "'yes'"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        lr_annealing(K, **options)
    assert_message(error.value, "lr_annealing", *words)
