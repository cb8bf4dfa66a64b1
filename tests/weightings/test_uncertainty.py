"""Uncertainty weighting against its transcription, in its limits, and at work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import uncertainty, value_and_term_grads, weighted
from tests._arguments import ByTerm
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import uncertainty as reference
from tests.weightings._runs import (
    descend,
    deviation,
    donate,
    keeps_parameters,
    random_losses,
    run,
)

KINDS = ("regression", "classification", "classification", "regression")
METHODS = {
    "uncertainty": Method(uncertainty),
    "uncertainty, mixed": Method(
        uncertainty,
        {"optimizer": optax.sgd(0.1, momentum=0.9), "likelihood": ByTerm(KINDS)},
    ),
}

STEPS = 40
KINDS = ("regression", "classification")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("likelihood", [*KINDS, "mixed"])
def test_transcription(likelihood, adam, terms, rng, record_deviation):
    losses = random_losses(rng, STEPS, terms)
    kinds = [likelihood] * terms
    if likelihood == "mixed":
        likelihood = kinds = [KINDS[i % 2] for i in range(terms)]
    optimizer = optax.adam(0.05) if adam else optax.sgd(0.05)
    found, _ = run(uncertainty(optimizer, likelihood=likelihood), losses)
    expected = reference.uncertainty(losses, kinds=kinds, rate=0.05, adam=adam)
    largest = deviation(found, expected)
    record_deviation(f"uncertainty, {'adam' if adam else 'sgd'}", largest)
    assert largest <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_transcription_descends_the_printed_objective(kind):
    # The reference's chain rule against central differences of what the paper prints.
    for s, L in ((0.0, 2.0), (-1.3, 0.4), (2.0, 0.1)):
        up, down = (
            reference.objective(np.exp((s + h) / 2), L, kind) for h in (1e-6, -1e-6)
        )
        differences = (up - down) / 2e-6
        assert reference.gradient(s, L, kind) == pytest.approx(differences, rel=1e-7)


@pytest.mark.usefixtures("x64")
def test_defaults_are_those_documented(rng):
    losses = random_losses(rng, STEPS, 3)
    found, _ = run(uncertainty(), losses)
    kinds = ["regression"] * 3
    expected = reference.uncertainty(losses, kinds=kinds, rate=1e-3, adam=True)
    assert deviation(found, expected) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "first", "variance"), [("regression", 0.5, 1), ("classification", 1, 2)]
)
def test_constant_losses_give_the_variance_in_closed_form(kind, first, variance):
    losses = np.array([1e-2, 1.0, 50.0])
    weighting = uncertainty(optax.adam(0.05), likelihood=kind)
    weights, state = run(weighting, np.broadcast_to(losses, (2000, 3)))
    np.testing.assert_allclose(weights[0], first)
    np.testing.assert_allclose(np.exp(state.log_variance), variance * losses, rtol=1e-3)
    np.testing.assert_allclose(weights[-1] * losses, 0.5, rtol=1e-3)


def test_each_term_is_learned_alone(rng):
    losses = random_losses(rng, 10, 3)
    together, _ = run(uncertainty(optax.adam(0.1)), losses)
    for i in range(3):
        alone, _ = run(uncertainty(optax.adam(0.1)), losses[:, i : i + 1])
        np.testing.assert_allclose(together[:, i : i + 1], alone, rtol=1e-6)


def test_a_loss_of_zero_moves_nothing():
    # Its variance has no optimum: the weight would grow until it overflows.
    losses = np.broadcast_to([0.0, 1.0], (5000, 2))
    weights, state = run(uncertainty(optax.adam(0.1)), losses)
    assert np.all(np.isfinite(weights))
    np.testing.assert_array_equal(weights[:, 0], 0.5)
    assert float(state.log_variance[0]) == 0.0


def test_the_smallest_losses_stay_finite():
    losses = np.full((4000, 1), 1e-37)
    weights, _ = run(uncertainty(optax.sgd(0.05)), losses)
    assert np.all(np.isfinite(weights))


def test_rosenbrock_by_plain_gradient_descent():
    weighting = uncertainty(optax.sgd(1e-4))
    losses, xy, weights = descend(weighting, rate=1e-3, steps=12_000)
    assert losses[-1].sum() < 1e-2 * losses[0].sum()
    assert np.all(np.isfinite(xy))
    assert weights[-1].max() > 0.6  # the losses fell, so the weights grew


def test_around_an_optimizer():
    def losses_fn(w):
        return jnp.stack([(w - 1.0) @ (w - 1.0), 10 * (w + 1.0) @ (w + 1.0)])

    weighting = uncertainty(optax.sgd(0.1))
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


def test_an_optimizer_that_keeps_the_weights_can_be_donated():
    assert np.all(np.isfinite(donate(uncertainty(keeps_parameters()))))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adam"}, ["optimizer", "GradientTransformation", "'adam'"]),
        ({"likelihood": "poisson"}, ["likelihood", "'regression'", "'poisson'"]),
        ({"likelihood": ["regression", 3]}, ["likelihood", "'classification'", "3"]),
        ({"likelihood": None}, ["likelihood", "'regression'", "None"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        uncertainty(**options)
    assert_message(error.value, "uncertainty", *words)


@pytest.mark.usefixtures("own_errors")
def test_wrong_number_of_likelihoods_is_an_error():
    weighting = uncertainty(likelihood=["regression", "regression"])
    with pytest.raises(ValueError, match="num_terms=3 of them, found 2"):
        weighting.init(3)


@pytest.mark.usefixtures("own_errors")
def test_missing_losses_are_an_error():
    weighting = uncertainty()
    with pytest.raises(ValueError, match="uncertainty: this weighting reads"):
        weighting.update(None, weighting.init(2))
