"""The battery that Optax holds its contributed optimizers to, with K terms.

A method here is a whole way from per-term gradients to a step: every exported
optimizer, every weighting in front of Adam, every aggregator with Adam behind it. All
are found, so that a new one is covered without a change here; a weighting that needs
another learning rate declares it (:mod:`tests._methods`).
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import multi_steps, value_and_term_grads, weighted
from tests import _factories, _methods
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_finite,
    assert_param_shapes,
    assert_same_signature,
    assert_single_trace,
)
from tests._params import some
from tests.references.min_norm import min_norm_point

STEPS = 3000


@dataclass(frozen=True)
class Method:
    """A named way from K gradients to a step.

    ``make(learning_rate, num_terms, **hyperparameters)`` builds it, the rate a number
    or a schedule; ``defaults`` are its hyperparameters that are numbers. For the rest
    see :class:`tests._methods.Method`.
    """

    name: str
    make: Callable
    defaults: dict[str, float]
    rate: float = 0.1
    nearness: float = 1e-3
    pareto: bool = False
    converges: bool = True

    def schedule(self):
        return optax.cosine_decay_schedule(self.rate, STEPS)


def _floats(function):
    """The arguments that are floats by default."""
    parameters = inspect.signature(function).parameters
    return {n: p.default for n, p in parameters.items() if type(p.default) is float}


def _from_optimizer(factory):
    def make(learning_rate, num_terms, **hyperparameters):
        return factory.build(
            learning_rate=learning_rate,
            inner=optax.adam(learning_rate),
            num_terms=num_terms,
            **hyperparameters,
        )

    return Method(
        factory.name,
        make,
        _floats(factory.function),
        rate=1.0 if factory.name == "adatask_adagrad" else 0.1,  # its steps shrink
        pareto=factory.name == "adaptive_mgda",
    )


def _from_aggregator(factory):
    def make(learning_rate, num_terms, **hyperparameters):
        aggregator = factory.build(num_terms=num_terms, **hyperparameters)
        if factory.name.startswith("scale_by_"):
            return optax.chain(aggregator, optax.scale_by_learning_rate(learning_rate))
        # What keeps momenta needs none behind it, with which it would oscillate.
        b1 = 0.0 if factory.name == "one_at_a_time" else 0.9
        return optax.chain(aggregator, optax.adam(learning_rate, b1=b1))

    return Method(factory.name, make, _floats(factory.function))


def _from_weighting(name):
    def make(learning_rate, num_terms, **hyperparameters):
        weighting = _methods.build(name, num_terms, **hyperparameters)
        return weighted(weighting, optax.adam(learning_rate), num_terms)

    declared = _methods.methods()[name]
    return Method(
        name,
        make,
        # Some have a learning rate of their own, beside that of the optimizer.
        {n: v for n, v in _floats(declared.factory).items() if n != "learning_rate"},
        rate=declared.rate,
        nearness=declared.nearness,
        pareto=declared.pareto,
        converges=declared.converges,
    )


def _found():
    for factory in _factories.factories():
        if factory.stage == "optimizers":
            yield _from_optimizer(factory)
        elif factory.stage == "aggregators":
            yield _from_aggregator(factory)
    yield from map(_from_weighting, _methods.factories())


METHODS = {method.name: method for method in _found()}
WEIGHTINGS = _methods.exported().keys()
each_method = pytest.mark.parametrize(
    "name",
    [n for n in METHODS if n not in WEIGHTINGS]
    + _methods.sampled(n for n in METHODS if n in WEIGHTINGS),
)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)

# Of the weightings all but one that reads the losses and one that mixes; and what goes
# the way of others to the minimum: the sum that of weights, a mean that of a median, an
# Adam, RMSProp or AdaGrad that of another, and a solver that of adaptive_mgda.
REPEATS = {"adatask_adam", "adatask_rmsprop", "adatask_adagrad", "ladatask_rmsprop"}
REPEATS |= {"scale_by_max_adam", "sum_terms", "trimmed_mean"}
REPEATS |= WEIGHTINGS - {"softadapt", "pcgrad"}


def test_every_method_is_found():
    assert METHODS.keys() >= {
        "mtadam",
        "adatask",
        "adatask_adam",
        "adatask_rmsprop",
        "adatask_adagrad",
        "ladatask_rmsprop",
        "metabalance",
        "adaptive_mgda",
        "grad_drop",
        "mgda",
        "cagrad",
        "pcgrad",
        "softadapt",
        "gradnorm",
    }


# Convergence. All targets live on one tree, so that a method is compiled once for all
# of them: squared distances from one minimum with coefficients, and Rosenbrock's
# valley. What a target does not touch has zero gradients.

START = {"matrix": [[0.0, 1.0], [0.0, 0.0]], "scalar": 0.5}
FIRST, MINIMUM = np.array([[0, 1, 0, 0, 0.5], [1, 1, 3, -2, -1]])  # the leaves in a row


def bowls(*touched):
    """Three paraboloids in some coordinates, of different sizes and shapes."""
    slopes = 1 + np.arange(15).reshape(3, 5) % 3
    return np.array([[1.0], [10.0], [0.1]]) * slopes * np.isin(np.arange(5), touched)


TARGETS = {
    "parabola": bowls(0, 1),
    # Its two squares, without the valley, and the distance that they share.
    "rosenbrock": np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]),
    "matrix": bowls(0, 1, 2, 3),
    "mixed": bowls(0, 1, 4) + bowls(0, 1, 2, 3),
}
VALLEYS = [[0.0, 100.0 * (name == "rosenbrock"), 0.0] for name in TARGETS]


def losses_fn(terms, params, target):
    coefficients, valley = target
    row = jnp.append(params["matrix"], params["scalar"])
    losses = coefficients @ (row - MINIMUM) ** 2 + valley * (row[1] - row[0] ** 2) ** 2
    return losses if terms == 3 else jnp.sum(losses, keepdims=True)


@functools.cache
def descend(name, terms):
    """Last parameters for each of the targets, in a row."""
    method = METHODS[name]
    tx = method.make(method.schedule(), terms)
    value_and_grads = value_and_term_grads(functools.partial(losses_fn, terms))

    def one_target(target):
        def step(carry, _):
            params, state = carry
            losses, grads = value_and_grads(params, target)
            updates, state = tx.update(grads, state, params, losses=losses)
            return (optax.apply_updates(params, updates), state), None

        params = {leaf: jnp.asarray(value) for leaf, value in START.items()}
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)
        return jnp.append(params["matrix"], params["scalar"])

    targets = np.float32(list(TARGETS.values())), np.float32(VALLEYS)
    return np.asarray(jax.jit(jax.vmap(one_target))(targets))


# One term is what the contracts and test_single_term say of K = 1: no new way to go.
@pytest.mark.parametrize("name", some(METHODS, METHODS.keys() - REPEATS))
@pytest.mark.parametrize("terms", [slow(1), 3])
@pytest.mark.parametrize("target", TARGETS)
def test_converges(name, terms, target):
    found = descend(name, terms)[list(TARGETS).index(target)]
    touched = TARGETS[target].any(axis=0)
    np.testing.assert_array_equal(found[~touched], np.float32(FIRST)[~touched])
    if not METHODS[name].converges and terms == 3:
        assert_finite(found)
    elif METHODS[name].pareto and terms == 3 and target == "rosenbrock":
        assert_pareto_critical(*np.float64(found[:2]))
    else:
        atol = METHODS[name].nearness
        np.testing.assert_allclose(found[touched], MINIMUM[touched], rtol=0, atol=atol)


def assert_pareto_critical(x, y):
    """No direction helps all of Rosenbrock's terms; it did at the start."""

    def shortest(x, y):
        off = y - x**2
        rows = [[2 * (x - 1), 0], [-400 * x * off, 200 * off], [2 * (x - 1), 2 * y - 2]]
        return np.linalg.norm(min_norm_point(np.array(rows))[0])

    assert shortest(x, y) <= 1e-3 * shortest(*FIRST[:2])


# Types. Tracing finds them; nothing is compiled.


def example(dtype, terms):
    """Parameters, one step's gradients and losses."""
    rng, dtype = np.random.default_rng(0), jnp.dtype(dtype)
    params = {leaf: np.asarray(value, dtype) for leaf, value in START.items()}
    grads = jax.tree.map(
        lambda p: rng.normal(size=(terms, *p.shape)).astype(dtype), params
    )
    losses = (1 + np.arange(terms)).astype(dtype)
    return jax.tree.map(jnp.asarray, (params, grads, losses))


@each_method
@pytest.mark.parametrize(
    ("dtype", "terms"),
    [
        # tests/test_contract.py has these with each stage alone.
        pytest.param("float16", 3, marks=pytest.mark.slow),
        pytest.param("float32", 3, marks=pytest.mark.slow),
        pytest.param("float32", 1, marks=pytest.mark.slow),
        ("bfloat16", 3),
        ("float64", 3),
    ],
)
def test_types_are_stable_in_cond_and_scan(name, dtype, terms):
    with jax.enable_x64(dtype == "float64"):
        method = METHODS[name]
        tx = method.make(method.schedule(), terms)
        params, grads, losses = example(dtype, terms)
        start = jax.eval_shape(tx.init, params)

        def take(state):
            return tx.update(grads, state, params, losses=losses)

        def maybe(state, go):
            # Both refuse a step that gives other types than it took.
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, state = jax.lax.cond(go, take, lambda s: (zeros, s), state)
            assert_param_shapes(updates, params)
            return state, updates

        gone = jnp.asarray([True, False])
        last, _ = jax.eval_shape(lambda s: jax.lax.scan(maybe, s, gone), start)
        assert_same_signature(last, start)


@each_method
def test_extra_arguments_are_traced_once(name):
    method = METHODS[name]
    tx = method.make(method.schedule(), 3)
    params, grads, losses = example("float32", 3)
    counted = CountedTraces(tx.update)
    step = jax.jit(counted)
    state = jax.eval_shape(tx.init, params)
    for epoch in range(3):
        more = {"value": jnp.float32(epoch), "epoch": epoch, "batch": {"x": grads}}
        _, state = step.eval_shape(grads, state, params, losses=losses, **more)
    assert_single_trace(counted)


# Numbers of a few steps, with two terms: solvers have a closed form or are small there.

FEW = 4


def random_steps(terms=2):
    """Gradients and losses of FEW steps, for ``scan``."""
    rng = np.random.default_rng(1)
    params, _, _ = example("float32", terms)
    grads = {
        leaf: rng.normal(size=(FEW, terms, *value.shape)).astype(np.float32)
        for leaf, value in params.items()
    }
    return params, grads, np.float32(np.exp(rng.normal(size=(FEW, terms))))


def random_halves():
    """The same means, in twice as many steps."""
    params, *steps = random_steps()
    noise = jax.tree.map(lambda x: np.sin(1e3 * x), steps[0]), 0.5 * steps[1]
    return params, *jax.tree.map(
        lambda x, n: np.stack([x + n, x - n], 1).reshape(2 * FEW, *x.shape[1:]),
        (*steps,),
        noise,
    )


def steps_of(tx, params, *steps):
    """The function that ``run`` compiles."""

    def step(state, data):
        grads, losses = data
        updates, state = tx.update(grads, state, params, losses=losses)
        return state, updates

    return lambda state: jax.lax.scan(step, state, steps)


def run(tx, params, *steps):
    """Updates of every step and the last state."""

    @jax.jit
    def program(params, *steps):
        return steps_of(tx, params, *steps)(tx.init(params))

    state, updates = program(params, *steps)
    return updates, state


@functools.cache
def plain(name):
    method = METHODS[name]
    return run(method.make(rising(), 2), *random_steps())[0]


def rising():
    return optax.linear_schedule(0.1, 0.4, FEW)


def injected(name):
    """The method with every number in the state of the optimizer, over two halves."""
    method = METHODS[name]

    def make(**given):
        return method.make(num_terms=2, **given)

    # Optax reads the names of the hyperparameters from the signature.
    make.__signature__ = inspect.Signature(
        [
            inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY)
            for argument in ("learning_rate", *method.defaults)
        ]
    )
    tx = optax.inject_hyperparams(make)(learning_rate=rising(), **method.defaults)
    return multi_steps(tx, 2, every_k_schedule=2)


@each_method
def test_hyperparameters_may_be_injected(name):
    # A branch on one of them, or a type that changes with it, is found by tracing.
    tx, (params, *halves) = injected(name), random_halves()
    state = jax.eval_shape(tx.init, params)
    state, _ = jax.eval_shape(steps_of(tx, params, *halves), state)
    names = {"learning_rate", *METHODS[name].defaults}
    assert state.inner_opt_state.hyperparams.keys() == names


# A weighting's numbers are a matter of its own tests, and to multi_steps one is like
# another: tests/wrappers has those that differ. So is an Adam or RMSProp like another.
@pytest.mark.parametrize("name", some(METHODS, METHODS.keys() - WEIGHTINGS - REPEATS))
def test_injected_hyperparameters_and_accumulated_halves(name):
    """Both in one program: either must give the plain step on the mean."""
    found, _ = run(injected(name), *random_halves())
    assert_finite(found)
    for leaf, updates in found.items():
        assert not np.any(updates[0::2]), leaf
    assert_close({k: u[1::2] for k, u in found.items()}, plain(name), rtol=1e-5)
