"""Loss-balanced task weighting against its transcription, in its limits, at work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import lbtw, value_and_term_grads, weighted
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import lbtw as reference
from tests.weightings._runs import descend, deviation, random_losses, run

METHODS = {
    # Its weights, and so its steps, vanish with the losses.
    "lbtw": Method(lbtw, rate=1.0, nearness=3e-2),
    "lbtw, epochs": Method(lbtw, {"steps_per_epoch": 3, "sum_to": "terms"}),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
@pytest.mark.parametrize("epoch", [None, 7])
@pytest.mark.parametrize("sum_to", [None, "terms"])
def test_transcription(sum_to, epoch, terms, rng, record_deviation):
    losses = random_losses(rng, 42, terms)
    found, _ = run(lbtw(0.7, steps_per_epoch=epoch, sum_to=sum_to), losses)
    expected = reference.lbtw(
        losses, alpha=0.7, batches=epoch or 42, normalise=sum_to is not None
    )
    largest = deviation(found, expected)
    record_deviation(f"lbtw, sum_to={sum_to}", largest)
    assert largest <= 1e-12


def test_defaults_are_those_documented(rng):
    losses = random_losses(rng, 6, 3)
    plain, _ = run(lbtw(), losses)
    spelled_out, _ = run(lbtw(0.5, steps_per_epoch=None, sum_to=None), losses)
    np.testing.assert_array_equal(plain, spelled_out)
    np.testing.assert_allclose(plain, np.sqrt(losses / losses[0]), rtol=1e-5)


def test_first_step_of_each_epoch_has_weights_of_one(rng):
    weights, state = run(lbtw(steps_per_epoch=3), random_losses(rng, 9, 4))
    np.testing.assert_array_equal(weights[::3], 1.0)
    assert np.all(np.abs(weights[1::3] - 1) > 1e-6)
    np.testing.assert_array_equal(state.seen, [9] * 4)


def test_zero_alpha_gives_weights_of_one(rng):
    weights, _ = run(lbtw(0.0), random_losses(rng, 5, 3))
    np.testing.assert_array_equal(weights, 1.0)


def test_unit_alpha_gives_the_ratios(rng):
    losses = random_losses(rng, 5, 3)
    weights, _ = run(lbtw(1.0), losses)
    np.testing.assert_allclose(weights, losses / losses[0], rtol=1e-5)


def test_the_scale_of_a_loss_does_not_matter(rng):
    losses = random_losses(rng, 6, 3)
    plain, _ = run(lbtw(), losses)
    scaled, _ = run(lbtw(), losses * np.array([1e-6, 1.0, 1e6]))
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)


@pytest.mark.parametrize(("sum_to", "whole"), [("terms", 4.0), (1.0, 1.0)])
def test_weights_add_up(sum_to, whole, rng):
    weights, _ = run(lbtw(sum_to=sum_to), random_losses(rng, 6, 4))
    np.testing.assert_allclose(weights.sum(axis=1), whole, rtol=1e-6)


@pytest.mark.parametrize("sum_to", [None, "terms"])
def test_zero_losses_count_as_unchanged(sum_to):
    weights, _ = run(lbtw(sum_to=sum_to), np.zeros((4, 3)))
    np.testing.assert_array_equal(weights, 1.0)
    weights, _ = run(lbtw(), np.array([[0.0, 4.0], [3.0, 1.0]]))
    np.testing.assert_array_equal(weights[-1], [1.0, 0.5])


def test_all_losses_at_zero_give_equal_shares_of_the_sum():
    losses = np.array([[2.0, 3.0], [0.0, 0.0]])
    weights, _ = run(lbtw(sum_to="terms"), losses)
    np.testing.assert_array_equal(weights[-1], 1.0)
    weights, _ = run(lbtw(), losses)
    np.testing.assert_array_equal(weights[-1], 0.0)


def test_one_term(rng):
    losses = random_losses(rng, 5, 1)
    weights, _ = run(lbtw(sum_to="terms"), losses)
    np.testing.assert_array_equal(weights, 1.0)
    weights, _ = run(lbtw(), losses)
    np.testing.assert_allclose(weights, np.sqrt(losses / losses[0]), rtol=1e-5)


def test_rosenbrock_by_plain_gradient_descent():
    losses, xy, weights = descend(lbtw(sum_to="terms"), rate=1e-3, steps=12_000)
    assert losses[-1].sum() < 1e-2 * losses[0].sum()
    np.testing.assert_allclose(xy, [1.0, 1.0], atol=0.1)
    assert np.ptp(weights[:, 0]) > 1e-3


def test_around_an_optimizer():
    def losses_fn(w):
        return jnp.stack([(w - 1.0) @ (w - 1.0), 10 * (w + 1.0) @ (w + 1.0)])

    tx = weighted(lbtw(), optax.sgd(0.01), num_terms=2)

    @jax.jit
    def step(w, state):
        losses, grads = value_and_term_grads(losses_fn)(w)
        return losses, grads, *tx.update(grads, state, w, losses=losses)

    w = np.float32([2.0, 0.5])
    state, first = tx.init(w), None
    for _ in range(5):
        *found, state = step(w, state)
        losses, grads, updates = map(np.asarray, found)
        first = losses if first is None else first
        expected = np.sqrt(losses / first)
        np.testing.assert_allclose(state.reweight.weights, expected, rtol=1e-6)
        np.testing.assert_allclose(updates, -0.01 * expected @ grads, rtol=1e-5)
        w = w + updates


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -0.5}, ["alpha", "[0, inf)", "-0.5"]),
        ({"steps_per_epoch": 0}, ["steps_per_epoch", "at least 1", "0"]),
        ({"steps_per_epoch": "all"}, ["steps_per_epoch", "static", "'all'"]),
        ({"sum_to": "one"}, ["sum_to", "'terms'", "'one'"]),
        ({"sum_to": -1.0}, ["sum_to", "-1.0"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        lbtw(**options)
    assert_message(error.value, "lbtw", *words)


@pytest.mark.usefixtures("own_errors")
def test_missing_losses_are_an_error():
    with pytest.raises(ValueError, match="lbtw: this weighting reads the losses"):
        lbtw().update(None, lbtw().init(2))
