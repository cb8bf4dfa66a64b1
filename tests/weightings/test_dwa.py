"""Dynamic weight average against its transcription, in its limits, and at work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import dwa, value_and_term_grads, weighted
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import dwa as reference
from tests.weightings._runs import descend, deviation, random_losses, run, run_each

METHODS = {
    "dwa": Method(dwa),
    "dwa, epochs": Method(dwa, {"temperature": 0.5, "steps_per_epoch": 2}),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
@pytest.mark.parametrize(("temperature", "epoch"), [(2.0, 1), (0.5, 1), (2.0, 7)])
def test_transcription(temperature, epoch, terms, rng, record_deviation):
    losses = random_losses(rng, 42, terms)
    found, _ = run(dwa(temperature, steps_per_epoch=epoch), losses)
    expected = reference.dwa(losses, T=temperature, epoch=epoch)
    largest = deviation(found, expected)
    record_deviation(f"dwa, epochs of {epoch}", largest)
    assert largest <= 1e-12


def test_defaults_are_those_documented(rng):
    losses = random_losses(rng, 6, 3)
    plain, _ = run(dwa(), losses)
    spelled_out, _ = run(dwa(2.0, steps_per_epoch=1), losses)
    np.testing.assert_array_equal(plain, spelled_out)


def test_two_epochs_of_ones_and_constant_within_an_epoch(rng):
    weights, state = run(dwa(steps_per_epoch=4), random_losses(rng, 20, 3))
    np.testing.assert_array_equal(weights[:8], 1.0)
    for start in (8, 12, 16):
        epoch = weights[start : start + 4]
        np.testing.assert_array_equal(epoch, np.broadcast_to(epoch[0], (4, 3)))
        assert np.ptp(epoch[0]) > 1e-3
    np.testing.assert_array_equal(state.seen, [20] * 3)
    np.testing.assert_array_equal(state.running, 0.0)


def test_weights_add_up_to_the_number_of_terms(rng):
    weights, _ = run(dwa(0.3), random_losses(rng, 12, 5))
    np.testing.assert_allclose(weights.sum(axis=1), 5.0, rtol=1e-6)


def test_infinite_temperature_gives_equal_weights(rng):
    losses = random_losses(rng, 8, 3)
    found = run_each([dwa(t) for t in (np.inf, 1.0, 10.0, 100.0)], losses)
    np.testing.assert_allclose(found[0][0], 1.0, rtol=1e-6)
    spreads = [np.ptp(weights[-1]) for weights, _ in found[1:]]
    assert spreads[0] > spreads[1] > spreads[2] > 0


def test_low_temperature_picks_the_slowest_term_and_does_not_overflow():
    losses = np.array([[1.0, 1.0], [0.5, 1e6], [1.0, 1.0]])
    weights, _ = run(dwa(1e-6), losses)
    np.testing.assert_array_equal(weights[-1], [0.0, 2.0])


def test_the_scale_of_a_loss_does_not_matter(rng):
    losses = random_losses(rng, 8, 3)
    plain, _ = run(dwa(), losses)
    scaled, _ = run(dwa(), losses * np.array([1e-6, 1.0, 1e6]))
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)


def test_zero_losses_count_as_unchanged():
    weights, _ = run(dwa(), np.zeros((5, 3)))
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)
    waking = np.array([[0.0, 1.0], [3.0, 1.0], [3.0, 1.0]])
    weights, _ = run(dwa(), waking)
    np.testing.assert_allclose(weights[-1], 1.0, rtol=1e-6)


def test_one_term_has_weight_one(rng):
    weights, _ = run(dwa(), random_losses(rng, 6, 1))
    np.testing.assert_array_equal(weights, 1.0)


def test_rosenbrock_by_plain_gradient_descent():
    losses, xy, weights = descend(dwa(), rate=1e-3, steps=12_000)
    assert losses[-1].sum() < 1e-2 * losses[0].sum()
    np.testing.assert_allclose(xy, [1.0, 1.0], atol=0.1)
    assert np.ptp(weights[:, 0]) > 1e-3


def test_around_an_optimizer():
    def losses_fn(w):
        return jnp.stack([(w - 1.0) @ (w - 1.0), 10 * (w + 1.0) @ (w + 1.0)])

    weighting = dwa()
    tx = weighted(weighting, optax.sgd(0.01), num_terms=2)
    w, own = np.float32([2.0, 0.5]), weighting.init(2)
    state = tx.init(w)

    @jax.jit
    def both(w, state, own):
        losses, grads = value_and_term_grads(losses_fn)(w)
        updates, state = tx.update(grads, state, w, losses=losses)
        alone, own = weighting.update(None, own, losses=losses)
        return updates, state, -0.01 * alone @ grads, alone, own

    for _ in range(5):
        updates, state, expected, alone, own = both(w, state, own)
        np.testing.assert_allclose(state.reweight.weights, alone, rtol=1e-6)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
        w = w + np.asarray(updates)


def test_a_loss_that_is_not_finite_spoils_two_epochs(rng):
    losses = random_losses(rng, 8, 2)
    losses[3, 0] = np.nan
    weights, _ = run(dwa(), losses)
    assert np.all(np.isnan(weights[[4, 5]]))
    assert np.all(np.isfinite(weights[[0, 1, 2, 3, 6, 7]]))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, ["temperature", "(0, inf]", "0.0"]),
        ({"temperature": "hot"}, ["temperature", "'hot'"]),
        ({"steps_per_epoch": 0}, ["steps_per_epoch", "at least 1", "0"]),
        ({"steps_per_epoch": 1.5}, ["steps_per_epoch", "static Python int", "1.5"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        dwa(**options)
    assert_message(error.value, "dwa", *words)


@pytest.mark.usefixtures("own_errors")
def test_missing_losses_are_an_error():
    with pytest.raises(ValueError, match="dwa: this weighting reads the losses"):
        dwa().update(None, dwa().init(2))
