"""AdaTask against Alg. 2, and its one-line forms against each other."""

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


# Where two terms cancel in the first step, one more rounding is a deviation of 2e-9.
@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
@pytest.mark.parametrize("inside", [False, True], ids=["eps outside", "eps inside"])
@pytest.mark.parametrize(
    "both", [both_adagrad, both_rmsprop, both_adam], ids=lambda f: f.__name__
)
def test_agrees_with_algorithm_2(x64, record_deviation, both, inside, terms):
    tx, transcription, options = both(terms, inside)
    problem = Pulls(terms, STEPS, seed=20 + terms)
    expected = transcription(
        problem.start, problem.numpy_gradients, STEPS, terms, inside=inside, **options
    )
    deviation = problem.deviation(problem.run(tx), expected)
    method = both.__name__.removeprefix("both_")
    form = "inside" if inside else "outside"
    record_deviation(f"adatask_{method}, eps {form}", deviation)
    assert deviation < 1e-9


WEIGHTS = [0.03, 1.0, 20.0]


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize(
    "both", [both_adagrad, both_rmsprop, both_adam], ids=lambda f: f.__name__
)
def test_weights_multiply_the_terms_own_steps(x64, record_deviation, both):
    tx, transcription, options = both(3, False, weights=WEIGHTS)
    problem = Pulls(3, STEPS, seed=23)
    expected = transcription(
        problem.start,
        problem.numpy_gradients,
        STEPS,
        3,
        inside=False,
        w=WEIGHTS,
        **options,
    )
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation(
        f"adatask_{both.__name__.removeprefix('both_')}, weights", deviation
    )
    assert deviation < 1e-9


def test_weights_before_cancel_and_weights_of_the_steps_do_not(x64):
    grads = np.random.default_rng(0).normal(size=(3, 4))
    weights = np.array(WEIGHTS)

    def step(tx, updates):
        return np.asarray(tx.update(jnp.asarray(updates), tx.init(jnp.zeros(4)))[0])

    for make in (
        lambda **kw: adatask(optax.adam(0.1, eps=1e-30), 3, **kw),
        lambda **kw: adatask_adam(0.1, 3, eps=0.0, **kw),
        lambda **kw: adatask_rmsprop(0.1, 3, eps=0.0, **kw),
        lambda **kw: adatask_adagrad(0.1, 3, eps=0.0, **kw),
    ):
        alone = np.stack([step(make(), row[:, None] * grads) for row in np.eye(3)])
        assert_close(step(make(), weights[:, None] * grads), alone.sum(0), rtol=1e-12)
        assert_close(step(make(weights=weights), grads), weights @ alone, rtol=1e-12)


def test_adatask_of_adam_is_adatask_adam(x64):
    problem = Pulls(3, 10, seed=1)
    short = problem.run(adatask_adam(0.02, 3, weights=WEIGHTS))
    lifted = problem.run(adatask(optax.adam(0.02), 3, weights=WEIGHTS))
    assert_close(short, lifted, rtol=1e-12)


def test_statistics_are_the_terms_own(x64):
    # A term that shouts a million times louder takes nothing from the others.
    rng = np.random.default_rng(0)
    quiet, loud = rng.normal(size=(6, 4)), 1e6 * rng.normal(size=(6, 4))
    tx, one, start = adatask_adam(0.1, 2), optax.adam(0.1), jnp.zeros(4)
    both, each = jax.jit(tx.update), jax.jit(one.update)
    state, alone, other = tx.init(start), one.init(start), one.init(start)
    for a, b in zip(quiet, loud, strict=True):
        updates, state = both(np.stack([a, b]), state)
        u, alone = each(a, alone)
        v, other = each(b, other)
        assert_close(updates, u + v, rtol=1e-12)


def test_weight_decay_enters_once():
    params = jnp.array([2.0, -3.0])
    grads = jnp.ones((4, 2))
    for factory in (adatask_adam, adatask_rmsprop, adatask_adagrad):
        plain, decayed = factory(0.1, 4), factory(0.1, 4, weight_decay=0.5)
        u, _ = plain.update(grads, plain.init(params), params)
        v, _ = decayed.update(grads, decayed.init(params), params)
        assert_close(v, u - 0.1 * 0.5 * params, rtol=1e-6)


@pytest.mark.parametrize("inside", [False, True])
def test_adagrad_takes_no_step_from_nothing(inside):
    tx = adatask_adagrad(0.1, 2, eps=0.0, eps_in_sqrt=inside)
    updates, state = tx.update(jnp.zeros((2, 3)), tx.init(jnp.zeros(3)))
    assert_zero(updates)
    updates, state = tx.update(jnp.ones((2, 3)), state)
    assert_close(updates, jnp.full(3, -0.2), rtol=1e-6)
    assert_finite(state)


def test_state_sizes():
    params = jnp.zeros((5, 3))
    expected = {adatask_adam: 2, adatask_rmsprop: 1, adatask_adagrad: 1}
    for factory, copies in expected.items():
        state = factory(0.1, 4).init(params)
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
    params = jnp.zeros(4)
    with pytest.raises(ValueError, match="term axis is missing"):
        tx.update(jnp.ones(4), tx.init(params), params)
