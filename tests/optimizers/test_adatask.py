"""AdaTask against Alg. 2, and its one-line forms against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    adatask,
    adatask_adagrad,
    adatask_adam,
    adatask_rmsprop,
    scale_by_max_adam,
)
from tests._asserts import assert_close, assert_finite, assert_message, assert_zero
from tests._problems import Pulls, sizes
from tests._runs import all_steps, first_step
from tests.references import adatask as reference

STEPS = 30


def both_adagrad(terms, inside, **options):
    tx = adatask_adagrad(0.02, terms, eps=1e-6, eps_in_sqrt=inside, **options)
    return tx, reference.adagrad, {"eta": 0.02, "epsilon": 1e-6}


def both_rmsprop(terms, inside, **options):
    rates = {"decay": 0.9, "eps": 1e-6, "eps_in_sqrt": inside}
    tx = adatask_rmsprop(0.02, terms, **rates, **options)
    return tx, reference.rmsprop, {"eta": 0.02, "epsilon": 1e-6, "gamma": 0.9}


def both_adam(terms, inside, **options):
    # The paper's gamma_1 is the decay of the second moment, gamma_2 of the first.
    rates = {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "eps_in_sqrt": inside}
    tx = adatask_adam(0.02, terms, **rates, **options)
    rates = {"gamma_1": 0.95, "gamma_2": 0.8}
    return tx, reference.adam, {"eta": 0.02, "epsilon": 1e-6, **rates}


WEIGHTS = [0.03, 1.0, 20.0]


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
@pytest.mark.parametrize("inside", [False, True], ids=["eps outside", "eps inside"])
@pytest.mark.parametrize(
    "both", [both_adagrad, both_rmsprop, both_adam], ids=lambda f: f.__name__
)
def test_agrees_with_algorithm_2(x64, record_deviation, both, inside, terms):
    """The form with epsilon inside has weights of the terms' own steps, too."""
    weights = np.resize(WEIGHTS, terms) if inside else None
    tx, transcription, options = both(terms, inside, weights=weights)
    problem = Pulls(terms, STEPS, seed=20 + terms)
    gradients, options = problem.numpy_gradients, {"inside": inside, **options}
    expected = transcription(
        problem.start, gradients, STEPS, terms, w=weights, **options
    )
    deviation = problem.deviation(problem.run(tx), expected)
    method = both.__name__.removeprefix("both_")
    form = "inside, weights" if inside else "outside"
    record_deviation(f"adatask_{method}, eps {form}", deviation)
    assert deviation < 1e-9


def test_weights_before_cancel_and_weights_of_the_steps_do_not(x64):
    grads = np.random.default_rng(0).normal(size=(3, 4))
    weights = np.array(WEIGHTS)
    scaled = np.stack([row[:, None] * grads for row in (*np.eye(3), weights)])
    for make in (
        lambda **kw: adatask(optax.adam(0.1, eps=1e-30), 3, **kw),
        lambda **kw: adatask_adam(0.1, 3, eps=0.0, **kw),
        lambda **kw: adatask_rmsprop(0.1, 3, eps=0.0, **kw),
        lambda **kw: adatask_adagrad(0.1, 3, eps=0.0, **kw),
    ):
        plain, weighed = make(), make(weights=weights)

        @jax.jit
        def first_steps(scaled, grads, plain=plain, weighed=weighed):
            def step(tx, grads):
                return tx.update(grads, tx.init(grads[0]))[0]

            many = jax.vmap(functools.partial(step, plain))(scaled)
            return many, step(weighed, grads)

        (*alone, before), steps = map(np.asarray, first_steps(scaled, grads))
        assert_close(before, np.sum(alone, axis=0), rtol=1e-12)
        assert_close(steps, weights @ np.stack(alone), rtol=1e-12)


def test_adatask_of_adam_is_adatask_adam(x64):
    problem = Pulls(3, 10, seed=1)
    short = problem.run(adatask_adam(0.02, 3, weights=WEIGHTS))
    lifted = problem.run(adatask(optax.adam(0.02), 3, weights=WEIGHTS))
    assert_close(short, lifted, rtol=1e-12)


def test_statistics_are_the_terms_own(x64):
    # A term that shouts a million times louder takes nothing from the others.
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(6, 2, 4)) * np.array([1, 1e6])[:, None]
    both, _ = all_steps(adatask_adam(0.1, 2), grads)
    alone, _ = all_steps(optax.adam(0.1), grads, np.zeros((2, 4)))
    assert_close(both, alone.sum(axis=1), rtol=1e-12)


def test_weight_decay_enters_once():
    params, grads = np.float32([2.0, -3.0]), np.ones((4, 2), np.float32)
    for factory in (adatask_adam, adatask_rmsprop, adatask_adagrad):
        u, _ = first_step(factory(0.1, 4), grads, params)
        v, _ = first_step(factory(0.1, 4, weight_decay=0.5), grads, params)
        assert_close(v, u - 0.1 * 0.5 * params, rtol=1e-6)


@pytest.mark.parametrize("inside", [False, True])
def test_adagrad_takes_no_step_from_nothing(inside):
    tx = adatask_adagrad(0.1, 2, eps=0.0, eps_in_sqrt=inside)
    grads = np.stack([np.zeros((2, 3)), np.ones((2, 3))]).astype(np.float32)
    updates, states = all_steps(tx, grads)
    assert_zero(updates[0])
    assert_close(updates[1], np.full(3, -0.2), rtol=1e-6)
    assert_finite(states)


def test_state_sizes():
    params = np.zeros((5, 3), np.float32)
    expected = {adatask_adam: 2, adatask_rmsprop: 1, adatask_adagrad: 1}
    for factory, copies in expected.items():
        state = jax.eval_shape(factory(0.1, 4).init, params)
        floats = [
            x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        assert sum(x.size for x in floats) == copies * 4 * params.size


@pytest.mark.parametrize(
    ("build", "argument", "expected"),
    [
        (lambda: adatask_adam(0.1, 2, b1=1.0), "b1", "[0, 1)"),
        (lambda: adatask_adam(0.1, 2, b2=-0.5), "b2", "[0, 1)"),
        (lambda: adatask_adam(0.1, 2, eps=-1.0), "eps", "[0, inf)"),
        (lambda: adatask_rmsprop(0.1, 2, decay=2.0), "decay", "[0, 1)"),
        (lambda: adatask_rmsprop(0.1, 2, eps=-1.0), "eps", "[0, inf)"),
        (lambda: adatask_adagrad(0.1, 2, eps=-1.0), "eps", "[0, inf)"),
        (lambda: scale_by_max_adam(2, weights=[1.0, 2.0]), "weights", "reduction"),
        (lambda: adatask_adam(0.1, 0), "num_terms", "at least 1"),
        (lambda: adatask(optax.sgd(0.1), -1), "num_terms", "at least 1"),
    ],
)
def test_bad_hyperparameter_is_named(own_errors, build, argument, expected):
    with pytest.raises(ValueError, match="must be") as caught:
        build()
    assert_message(caught.value, argument, expected, "found")


def test_inner_must_be_a_transformation(own_errors):
    with pytest.raises(TypeError, match="inner must be an optax"):
        adatask(0.1, 2)


def test_gradients_without_the_term_axis_are_refused():
    tx = adatask(optax.adam(0.1), 3)
    params = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="term axis is missing"):
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
