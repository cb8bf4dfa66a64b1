"""GradNorm against its transcription, in its limits, and at work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    constant,
    gradnorm,
    reweight,
    value_and_term_grads,
    weighted,
)
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import gradnorm as reference
from tests.weightings._runs import (
    deviation,
    donate,
    keeps_parameters,
    random_losses,
    run,
)

# The first step's weights are equal, whatever the gradients.
METHODS = {
    "gradnorm": Method(gradnorm, permutes=True, invariant=True, relative=("learned",))
}

STEPS = 40


def random_jacobians(rng, steps, terms):
    """Gradients [steps, K, P] whose norms wander, each term on a scale of its own."""
    drift = np.cumsum(0.1 * rng.normal(size=(steps, terms)), axis=0)
    sizes = np.exp(drift + rng.normal(size=terms))
    return sizes[:, :, None] * rng.normal(size=(steps, terms, 20))


def gramians(rows):
    return np.einsum("tip,tjp->tij", rows, rows)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
@pytest.mark.parametrize("alpha", [0.12, 1.5])
def test_transcription(alpha, adam, terms, rng, record_deviation):
    rows, losses = random_jacobians(rng, STEPS, terms), random_losses(rng, STEPS, terms)
    rate = 0.025 if adam else 1e-3
    optimizer = optax.adam(rate) if adam else optax.sgd(rate)
    found, _ = run(gradnorm(alpha, optimizer=optimizer), losses, gramians(rows))
    expected = reference.gradnorm(rows, losses, alpha=alpha, rate=rate, adam=adam)
    largest = deviation(found, expected)
    record_deviation(f"gradnorm, {'adam' if adam else 'sgd'}", largest)
    assert np.ptp(expected[-1]) > 1e-2
    assert largest <= 1e-12


@pytest.mark.usefixtures("x64")
def test_defaults_are_those_documented(rng):
    rows, losses = random_jacobians(rng, STEPS, 3), random_losses(rng, STEPS, 3)
    found, _ = run(gradnorm(), losses, gramians(rows))
    expected = reference.gradnorm(rows, losses, alpha=1.5, rate=0.025, adam=True)
    assert deviation(found, expected) <= 1e-12


@pytest.mark.usefixtures("x64")
def test_weights_descend_the_printed_objective(rng):
    # What the optimizer is given is the derivative of Eq. 2, found by differences.
    rows, losses = random_jacobians(rng, 2, 4), random_losses(rng, 2, 4)
    norms = np.linalg.norm(rows, axis=2)

    def spy(updates, state, params):
        del state
        return jax.tree.map(lambda g: -1e-3 * g, updates), (updates, params)

    optimizer = optax.GradientTransformation(lambda w: (w, w), spy)
    weighting, seen = gradnorm(1.5, optimizer=optimizer), []
    state, update = weighting.init(4), jax.jit(weighting.update)
    for gramian, loss in zip(gramians(rows), losses, strict=True):
        _, state = update(gramian, state, losses=loss)
        seen.append([np.asarray(one) for one in state.optimizer])
    for t, (gradient, weights) in enumerate(seen):
        left = losses[t] / losses[0]
        target = np.mean(weights * norms[t]) * (left / left.mean()) ** 1.5
        expected = reference.differences(weights, norms[t], target)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_first_step_uses_ones_and_every_step_sums_to_the_number_of_terms(rng):
    rows, losses = random_jacobians(rng, 10, 5), random_losses(rng, 10, 5)
    weights, state = run(gradnorm(), losses, gramians(rows))
    np.testing.assert_array_equal(weights[0], 1.0)
    np.testing.assert_allclose(weights.sum(axis=1), 5.0, rtol=1e-6)
    np.testing.assert_allclose(state.first, losses[0], rtol=1e-6)


def test_zero_alpha_makes_the_weighted_norms_equal():
    # At most one step of the optimizer, with the renormalisation, away from equality.
    norms, rate, steps = np.array([1.0, 2.0, 4.0]), 1e-3, 3000
    optimizer = optax.chain(optax.scale_by_sign(), optax.scale(-rate))
    weights, _ = run(
        gradnorm(0.0, optimizer=optimizer),
        np.ones((steps, 3)),
        np.broadcast_to(np.diag(norms**2), (steps, 3, 3)),
    )
    balanced = 3 / norms / np.sum(1 / norms)
    np.testing.assert_allclose(weights[-1], balanced, atol=5 * rate)


def test_equal_terms_keep_equal_weights():
    weights, _ = run(
        gradnorm(), np.ones((20, 4)), np.broadcast_to(np.eye(4), (20, 4, 4))
    )
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_the_term_that_learns_slowest_gains_weight():
    steps = 30
    losses = np.stack([np.ones(steps), 0.9 ** np.arange(steps)], axis=1)
    equal_norms = np.broadcast_to(np.eye(2), (steps, 2, 2))
    weights, _ = run(gradnorm(), losses, equal_norms)
    assert np.all(np.diff(weights[2:, 0]) > 0)
    assert weights[-1, 0] > 1.5


def test_scales_of_losses_and_of_all_gradients_do_not_matter_with_adam(rng):
    rows, losses = random_jacobians(rng, 20, 3), random_losses(rng, 20, 3)
    plain, _ = run(gradnorm(), losses, gramians(rows))
    scaled, _ = run(gradnorm(), losses * [1e-6, 1.0, 1e6], gramians(1e4 * rows))
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_zero_losses_and_gradients_stay_finite(first):
    losses = np.zeros((6, 3))
    losses[0] = first
    weights, state = run(gradnorm(), losses, np.zeros((6, 3, 3)))
    np.testing.assert_array_equal(weights, 1.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    weights, _ = run(gradnorm(), losses, np.broadcast_to(np.eye(3), (6, 3, 3)))
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_a_first_loss_of_zero_counts_as_unchanged():
    losses = np.array([[0.0, 1.0], [5.0, 1.0], [5.0, 1.0]])
    weights, _ = run(gradnorm(), losses, np.broadcast_to(np.eye(2), (3, 2, 2)))
    np.testing.assert_allclose(weights, 1.0, rtol=1e-6)


def test_weights_stop_at_zero_and_come_back():
    weighting = gradnorm(0.0, optimizer=optax.sgd(0.9))
    loud, even = np.diag(np.float32([4.0, 1.0])), np.eye(2, dtype=np.float32)
    state, update = weighting.init(2), jax.jit(weighting.update)
    _, state = update(loud, state, losses=np.ones(2, np.float32))
    np.testing.assert_array_equal(state.learned, [0.0, 2.0])
    _, state = update(even, state, losses=np.ones(2, np.float32))
    assert np.all(np.asarray(state.learned) > 0)


def test_weights_start_anew_when_all_would_be_negative():
    optimizer = optax.stateless(lambda updates, params: -10.0 * params)
    weighting = gradnorm(optimizer=optimizer)
    _, state = jax.jit(weighting.update)(
        np.eye(2), weighting.init(2), losses=np.ones(2)
    )
    np.testing.assert_array_equal(state.learned, 1.0)


def test_one_term_has_weight_one(rng):
    rows, losses = random_jacobians(rng, 8, 1), random_losses(rng, 8, 1)
    weights, _ = run(gradnorm(), losses, gramians(rows))
    np.testing.assert_array_equal(weights, 1.0)


def test_brings_the_terms_to_one_rate_of_training():
    curvature = jnp.array([1.0, 30.0])

    def losses_fn(w):
        return curvature * (w - 1.0) ** 2

    def spread(weighting):
        """How far apart the losses, relative to the first ones, have come."""
        tx = weighted(weighting, optax.sgd(1e-3), num_terms=2)

        def step(carry, _):
            w, state = carry
            losses, grads = value_and_term_grads(losses_fn)(w)
            updates, state = tx.update(grads, state, w, losses=losses)
            return (optax.apply_updates(w, updates), state), losses

        w = jnp.zeros(2)
        train = jax.jit(lambda c: jax.lax.scan(step, c, None, length=200))
        losses = np.asarray(train((w, tx.init(w)))[1])
        left = losses[-1] / losses[0]
        return abs(float(np.log(left[0] / left[1])))

    assert spread(gradnorm()) < 0.2 * spread(constant([1.0, 1.0]))


def test_each_group_learns_weights_of_its_own():
    tx = reweight(gradnorm(0.0), num_terms=2, groups="leaf")
    params = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}
    grads = {
        "a": np.float32([[1.0] * 3, [9.0] * 3]),
        "b": np.float32([[9.0] * 2, [1.0] * 2]),
    }
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(3):
        _, state = update(grads, state, params, losses=np.ones(2, np.float32))
    state = jax.tree.map(np.asarray, state)
    assert state.weights["a"][0] > 1 > state.weights["a"][1]
    assert state.weights["b"][0] < 1 < state.weights["b"][1]


def test_alpha_may_be_traced(rng):
    rows, losses = random_jacobians(rng, 3, 3), random_losses(rng, 3, 3)

    @jax.jit
    def last(alpha):
        weighting = gradnorm(alpha)
        state = weighting.init(3)
        for gramian, loss in zip(gramians(rows), losses, strict=True):
            weights, state = weighting.update(
                jnp.asarray(gramian), state, losses=jnp.asarray(loss)
            )
        return weights

    expected, _ = run(gradnorm(0.7), losses, gramians(rows))
    np.testing.assert_allclose(last(0.7), expected[-1], rtol=1e-6)


def test_hyperparameters_may_be_injected():
    def optimizer(alpha, learning_rate):
        return weighted(gradnorm(alpha), optax.sgd(learning_rate), num_terms=2)

    grads = np.float32([[1.0, 0.0], [0.0, 3.0]])
    injected = optax.inject_hyperparams(optimizer)(alpha=0.5, learning_rate=0.1)
    plain = optimizer(0.5, 0.1)
    w = np.zeros(2, np.float32)
    state, expected = injected.init(w), plain.init(w)
    one, other = jax.jit(injected.update), jax.jit(plain.update)
    for scale in (1.0, 0.5, 0.25):
        losses = np.float32([scale, 2.0])
        found, state = one(grads, state, losses=losses)
        updates, expected = other(grads, expected, losses=losses)
        np.testing.assert_allclose(found, updates, rtol=1e-6)
    assert float(state.hyperparams["alpha"]) == 0.5


def test_an_optimizer_that_keeps_the_weights_can_be_donated():
    assert np.all(np.isfinite(donate(gradnorm(optimizer=keeps_parameters()))))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -1.0}, ["alpha", "[0, inf)", "-1.0"]),
        ({"optimizer": 0.1}, ["optimizer", "optax.GradientTransformation", "0.1"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        gradnorm(**options)
    assert_message(error.value, "gradnorm", *words)


@pytest.mark.usefixtures("own_errors")
def test_missing_losses_are_an_error():
    weighting = gradnorm()
    with pytest.raises(ValueError, match="gradnorm: this weighting reads the losses"):
        weighting.update(jnp.eye(2), weighting.init(2))
