"""Exponentiated gradient on the excess, against its transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import excess
from tests._arguments import ByTerm
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import excess as reference
from tests.weightings._runs import deviation, random_losses, run

METHODS = {
    "excess": Method(excess),
    "excess, floor": Method(
        excess, {"learning_rate": 0.5, "floor": ByTerm((0.1, 0.0, -1.0, 0.2))}
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(1, 2)))
@pytest.mark.parametrize("known", [False, True], ids=["lowest", "floor"])
def test_transcription(known, terms, rng, record_deviation):
    losses = random_losses(rng, 60, terms)
    floor = rng.normal(size=terms) if known else None
    found, _ = run(excess(0.3, floor), losses)
    largest = deviation(found, reference.excess(losses, eta=0.3, floor=floor))
    record_deviation(f"excess, {'floor' if known else 'lowest'}", largest)
    assert largest <= 1e-12
    np.testing.assert_allclose(found.sum(axis=1), terms, rtol=1e-12)


def test_losses_that_only_fall_have_no_excess_without_a_floor():
    losses = np.stack([0.9 ** np.arange(20), 0.99 ** np.arange(20)], axis=1)
    weights, _ = run(excess(1.0), losses)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)
    weights, _ = run(excess(1.0, [0.0, 0.0]), losses)
    assert weights[-1, 1] > 1.5  # it has more left to gain


def test_neither_scale_nor_zero_of_a_loss_matter(rng):
    losses = np.float32(random_losses(rng, 30, 2))
    plain, _ = run(excess(0.5), losses)
    scaled, _ = run(excess(0.5), losses * np.float32([2.0**-50, 2.0**50]))
    np.testing.assert_array_equal(scaled, plain)
    moved, _ = run(excess(0.5), losses - np.float32([3.0, -2.0]))
    np.testing.assert_allclose(moved, plain, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_moves_nothing(bad):
    losses = np.array([[bad, 4.0], [2.0, 2.0], [bad, 3.0], [1.0, 3.0]])
    _, state = run(excess(), losses)
    np.testing.assert_array_equal(state.first, [2.0, 4.0])
    np.testing.assert_array_equal(state.lowest, [1.0, 2.0])
    np.testing.assert_array_equal(state.seen, [2, 4])
    np.testing.assert_allclose(state.logits, [-0.0025, 0.0025], rtol=1e-5)


def test_all_may_be_traced():
    @jax.jit
    def weigh(rate, floor):
        weighting = excess(rate, floor)
        state = weighting.init(2)
        for losses in ([4.0, 2.0], [1.0, 2.0]):
            weights, state = weighting.update(None, state, losses=jnp.array(losses))
        return weights

    expected = reference.excess(
        np.array([[4.0, 2.0], [1.0, 2.0]]), eta=0.7, floor=[0.0, 1.0]
    )
    np.testing.assert_allclose(
        weigh(0.7, jnp.array([0.0, 1.0])), expected[-1], rtol=1e-6
    )


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": np.inf}, ["learning_rate", "inf"]),
        ({"floor": [1.0]}, ["floor", "(3,)", "(1,)"]),
        ({"floor": "low"}, ["floor", "3 numbers", "'low'"]),
        ({"floor": [0.0, np.nan, 0.0]}, ["floor", "(-inf, inf)", "nan"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        excess(**options).init(3)
    assert_message(error.value, "excess", *words)
