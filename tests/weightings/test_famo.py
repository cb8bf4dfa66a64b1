"""FAMO against its transcription, with and without the losses after the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    famo,
    value_and_term_grads,
    value_and_weighted_grad,
    weighted,
)
from tests._asserts import assert_identical, assert_message
from tests._problems import sizes
from tests.references import famo as reference
from tests.weightings._runs import deviation, random_losses, run


def run_with_after(weighting, before, after):
    """Weights of every step that is told what the one before it has reached."""
    told = np.concatenate([np.full_like(after[:1], 7.0), after[:-1]])

    def step(state, data):
        losses, reached = data
        weights, state = weighting.update(
            None, state, losses=losses, losses_after=reached
        )
        return state, weights

    start = weighting.init(before.shape[1])
    return jax.jit(lambda s: jax.lax.scan(step, s, (before, told)))(start)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(1, 2)))
@pytest.mark.parametrize("told", [True, False], ids=["after", "next"])
def test_transcription(told, terms, rng, record_deviation):
    losses = random_losses(rng, 60, terms)
    options = {"rate": 0.025, "gamma": 0.001}
    if told:
        after = losses * np.exp(0.1 * rng.normal(size=losses.shape))
        _, found = run_with_after(famo(), losses, after)
        found = np.asarray(found)
    else:
        # The next step's losses stand for them; the last are not needed.
        after = np.concatenate([losses[1:], losses[-1:]])
        found, _ = run(famo(), losses)
    largest = deviation(found, reference.famo(losses, after, **options))
    record_deviation(f"famo, {'after' if told else 'next'}", largest)
    assert largest <= 1e-12


@pytest.mark.usefixtures("x64")
def test_hyperparameters_may_be_traced(rng):
    losses = random_losses(rng, 4, 3)

    @jax.jit
    def weigh(rate, decay):
        weighting = famo(rate, decay)
        state = weighting.init(3)
        for row in losses:
            weights, state = weighting.update(None, state, losses=jnp.asarray(row))
        return weights

    after = np.concatenate([losses[1:], losses[-1:]])
    expected = reference.famo(losses, after, rate=0.3, gamma=0.1)[-1]
    np.testing.assert_allclose(weigh(0.3, 0.1), expected, rtol=1e-12)


def test_the_term_that_falls_the_most_steps_back():
    losses = np.stack([0.9 ** np.arange(100), 0.99 ** np.arange(100)], axis=1)
    weights, state = run(famo(), losses)
    logits = np.asarray(state.logits)
    assert logits[0] < logits[1]
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)


def test_the_scale_of_a_loss_does_not_move_the_logits(rng):
    losses = np.float32(random_losses(rng, 20, 3))
    _, plain = run(famo(), losses)
    _, scaled = run(famo(), losses * np.float32([2.0**-50, 1.0, 2.0**50]))
    assert_identical(scaled.logits, plain.logits)


@pytest.mark.parametrize("bad", [0.0, 1e-42, np.inf, np.nan])
def test_losses_that_have_no_logarithm(bad):
    losses = np.array([[1.0, 2.0, 1.0], [1.0, bad, 0.5], [1.0, 2.0, 0.5]])
    weights, state = run(famo(), losses)
    np.testing.assert_allclose(weights[1], [1 / 3, 0.0, 2 / 3], rtol=0.05)
    assert np.all(np.isfinite(weights))
    assert float(state.logits[1]) == 0.0
    np.testing.assert_array_equal(state.moved, [2, 0, 2])
    # Nothing is known of any term.
    weights, _ = run(famo(), np.full((2, 3), bad))
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def test_the_loop_of_the_page():
    """The losses after the step are carried to the next, with its own batch."""

    def losses_fn(w, batch):
        return {"a": jnp.mean((w[0] - batch) ** 2), "b": jnp.mean((w @ w - batch) ** 2)}

    tx = weighted(famo(), optax.sgd(0.05), num_terms=2)

    @jax.jit
    def step(w, state, after, batch):
        losses, grads = value_and_term_grads(losses_fn)(w, batch)
        updates, state = tx.update(grads, state, w, losses=losses, losses_after=after)
        w = optax.apply_updates(w, updates)
        return w, state, losses_fn(w, batch), losses

    batches = np.random.default_rng(0).normal(1.0, 0.1, size=(5, 8)).astype(np.float32)
    w = jnp.array([2.0, 0.5])
    state, after = tx.init(w), losses_fn(w, batches[0])
    before, reached, weights = [], [], []
    for batch in batches:
        w, state, after, losses = step(w, state, after, batch)
        before.append([losses["a"], losses["b"]])
        reached.append([after["a"], after["b"]])
        weights.append(state.reweight.weights)
    expected = reference.famo(
        np.array(before, np.float64),
        np.array(reached, np.float64),
        rate=0.025,
        gamma=0.001,
    )
    np.testing.assert_allclose(np.array(weights), expected, rtol=1e-4)


@pytest.mark.usefixtures("own_errors")
def test_bad_losses_after_are_errors():
    weighting = famo()
    with pytest.raises(ValueError, match="losses_after") as error:
        weighting.update(
            None, weighting.init(2), losses=jnp.ones(2), losses_after=jnp.ones(3)
        )
    assert_message(error.value, "famo", "num_terms=2", "found 3")


def test_weights_first_are_told_what_the_last_step_did():
    def losses_fn(w):
        return jnp.stack([w[0] ** 2, 3.0 * (w[1] - 1) ** 2])

    weighting = famo()
    weighted_grad = value_and_weighted_grad(losses_fn, weighting)
    state, own = weighted_grad.init(2), weighting.init(2)

    @jax.jit
    def both(state, own, w):
        after = 0.9 * losses_fn(w)  # of another batch
        losses, _, state = weighted_grad.update(state, w, losses_after=after)
        alone, own = weighting.update(None, own, losses=losses, losses_after=after)
        return state, alone, own

    for w in np.float32([[2.0, 0.5], [1.9, 0.7]]):
        state, alone, own = both(state, own, w)
        np.testing.assert_allclose(state.weights, alone, rtol=1e-6)
    np.testing.assert_allclose(state.weighting.logits, own.logits, rtol=1e-6)
    assert np.all(np.asarray(own.moved) == 1)
