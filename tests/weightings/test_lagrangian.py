"""Lagrange multipliers against their transcription, and constraints that hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import lagrangian, value_and_weighted_grad
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import lagrangian as reference
from tests.weightings._runs import deviation, random_losses, run, run_each


def levels(terms):
    return np.zeros(terms - 1)


METHODS = {
    "lagrangian": Method(
        lagrangian, {"targets": levels, "learning_rate": 0.1}, ordered=True
    ),
    "lagrangian, PI": Method(
        lagrangian,
        {"targets": levels, "learning_rate": 0.1, "kp": 2.0, "nu": 0.5, "rho": 1.0},
        ordered=True,
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(1, 2)))
@pytest.mark.parametrize(
    ("kp", "nu", "rho"), [(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (2.0, 0.9, 0.5)]
)
def test_transcription(kp, nu, rho, terms, rng, record_deviation):
    losses = random_losses(rng, 60, terms) - 0.5
    targets = rng.normal(size=terms - 1)
    found, _ = run(lagrangian(targets, 0.1, kp, nu=nu, rho=rho), losses)
    expected = reference.lagrangian(losses, targets, eta=0.1, kp=kp, nu=nu, rho=rho)
    largest = deviation(found, expected)
    record_deviation("lagrangian", largest)
    assert largest <= 1e-12
    assert np.all(found[:, 0] == 1)
    assert np.all(found >= 0)


def train(weighting, steps=1500):
    """Losses and weights at the end: minimises (x - 2)^2 + y^2 inside the disc."""

    def losses_fn(w):
        return jnp.stack([(w[0] - 2) ** 2 + w[1] ** 2, w @ w, (w[1] - 1) ** 2])

    weighted_grad, tx = value_and_weighted_grad(losses_fn, weighting), optax.sgd(0.02)

    def step(carry, _):
        w, state, inner = carry
        losses, grads, state = weighted_grad.update(state, w)
        updates, inner = tx.update(grads, inner)
        carry = optax.apply_updates(w, updates), state, inner
        return carry, (losses, state.weights)

    @jax.jit
    def descend(w):
        start = w, weighted_grad.init(3), tx.init(w)
        return jax.lax.scan(step, start, None, length=steps)[1]

    return [np.asarray(one) for one in descend(np.float32([0.3, 0.2]))]


@pytest.mark.parametrize("options", [{}, {"kp": 5.0}, {"rho": 1.0}])
def test_the_constraints_hold_in_the_end_and_the_multipliers_are_those(options):
    # By hand: the first constraint is active at (1, 0), where 2 (x - 2) + 2 lam x = 0;
    # the second never is.
    losses, weights = train(lagrangian([1.0, 4.0], 0.05, **options))
    np.testing.assert_allclose(losses[-1], [1.0, 1.0, 1.0], atol=2e-3)
    np.testing.assert_allclose(weights[-1], [1.0, 1.0, 0.0], atol=5e-3)


def test_the_proportional_part_damps():
    plain, _ = train(lagrangian([1.0, 4.0], 0.3))
    damped, _ = train(lagrangian([1.0, 4.0], 0.3, kp=5.0))
    assert np.ptp(damped[100:300, 1]) < 0.5 * np.ptp(plain[100:300, 1])


def test_targets_of_all_terms_are_those_of_all_but_the_first(rng):
    losses = random_losses(rng, 10, 3)
    both = [lagrangian(t, 0.1) for t in ([np.nan, 0.2, 0.3], [0.2, 0.3])]
    (found, _), (expected, _) = run_each(both, losses)
    np.testing.assert_array_equal(found, expected)


def test_the_term_without_a_level_is_minimised_wherever_it_stands(rng):
    losses = random_losses(rng, 10, 3)
    found, _ = run(lagrangian([0.2, 0.3], 0.1, kp=0.5, rho=0.1), losses)
    named = lagrangian({"later": 0.3, "early": 0.2}, 0.1, kp=0.5, rho=0.1)
    state, update = jax.jit(lambda: named.init(3))(), jax.jit(named.update)
    for loss, (goal, early, later) in zip(losses, found, strict=True):
        given = dict(zip(("goal", "early", "later"), loss, strict=True))
        weights, state = update(None, state, losses=given)
        np.testing.assert_allclose(weights, [early, goal, later], rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("targets", "losses", "words"),
    [
        ({"a": 1.0}, None, ["name 2 of the num_terms=3", "a"]),
        ({"a": 1.0, "x": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, ["a, b, c", "'x'"]),
        ({"a": 1.0, "b": 1.0}, np.ones(3), ["losses=losses", "no names"]),
    ],
)
def test_names_that_do_not_fit_are_errors(targets, losses, words):
    weighting = lagrangian(targets, 0.1)
    with pytest.raises(ValueError, match="targets") as error:
        # Nothing but tracing is needed to find them.
        jax.eval_shape(lambda: weighting.update(None, weighting.init(3), losses=losses))
    assert_message(error.value, "lagrangian", *words)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_leaves_its_multiplier(bad):
    losses = np.array([[1.0, 2.0], [bad, bad], [1.0, 1.0]])
    weights, _ = run(lagrangian([1.0], 0.5, kp=1.0, rho=2.0), losses)
    np.testing.assert_allclose(weights, [[1, 2], [1, 1], [1, 1]])


def test_all_may_be_traced():
    @jax.jit
    def weigh(targets, rate, kp, nu, rho):
        weighting = lagrangian(targets, rate, kp, nu=nu, rho=rho)
        state = weighting.init(2)
        for loss in (1.5, 3.0):
            both = jnp.array([9.0, loss])
            weights, state = weighting.update(None, state, losses=both)
        return weights

    losses = np.array([[9.0, 1.5], [9.0, 3.0]])
    options = {"eta": 0.2, "kp": 0.5, "nu": 0.3, "rho": 0.1}
    expected = reference.lagrangian(losses, [1.0], **options)[-1]
    found = weigh(jnp.array([1.0]), *options.values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": 1.0}, ["targets", "(2,)", "(3,)", "()"]),
        ({"targets": [1.0]}, ["targets", "(2,)", "num_terms=3", "(1,)"]),
        ({"targets": [1.0, np.inf]}, ["targets", "(-inf, inf)", "inf"]),
        ({"targets": "low"}, ["targets", "K - 1 numbers", "'low'"]),
        ({"learning_rate": np.inf}, ["learning_rate", "inf"]),
        ({"kp": -1.0}, ["kp", "[0, inf)", "-1.0"]),
        ({"nu": 1.0}, ["nu", "[0, 1)", "1.0"]),
        ({"rho": -1.0}, ["rho", "[0, inf)", "-1.0"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        lagrangian(**{"targets": [1.0, 1.0], "learning_rate": 0.1, **options}).init(3)
    assert_message(error.value, "lagrangian", *words)
