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
# of them: a target has weight in the losses or it has not, and what it does not touch
# has zero gradients.

START = {"scalar": 0.5, "vector": [0.0, 1.0], "matrix": np.zeros((2, 2))}
MINIMUM = {"scalar": -1.0, "vector": [1.0, 1.0], "matrix": [[3.0, -2.0], [1.0, 4.0]]}
TARGETS = {  # coefficients of the losses of LEAVES
    "parabola": (1.0, 0.0, 0.0, 0.0),
    "rosenbrock": (0.0, 1.0, 0.0, 0.0),
    "matrix": (0.0, 0.0, 1.0, 0.0),
    "mixed": (1.0, 0.0, 1.0, 1.0),
}
TOUCHED = ("vector", "vector", "matrix", "scalar")


def bowls(leaf, at):
    """Three paraboloids around one minimum, of different sizes and shapes."""
    away = (leaf - jnp.asarray(at)).ravel()
    slopes = 1 + np.arange(3 * away.size).reshape(3, -1) % 3
    return jnp.asarray([1.0, 10.0, 0.1]) * (slopes @ away**2)


def rosenbrock(xy):
    """Its two squares and the distance from the minimum that they share."""
    x, y = xy
    return jnp.stack([(1 - x) ** 2, 100 * (y - x**2) ** 2, (x - 1) ** 2 + (y - 1) ** 2])


def three_losses(params, target):
    return (
        target[0] * bowls(params["vector"], MINIMUM["vector"])
        + target[1] * rosenbrock(params["vector"])
        + target[2] * bowls(params["matrix"], MINIMUM["matrix"])
        + target[3] * bowls(params["scalar"], MINIMUM["scalar"])
    )


def losses_fn(terms, params, target):
    losses = three_losses(params, target)
    return losses if terms == 3 else jnp.sum(losses, keepdims=True)


@functools.cache
def descend(name, terms):
    """Last parameters for each of the targets, leaves [targets, *p]."""
    method = METHODS[name]
    tx = method.make(method.schedule(), terms)
    value_and_grads = value_and_term_grads(functools.partial(losses_fn, terms))

    def one_target(target):
        def step(carry, _):
            params, state = carry
            losses, grads = value_and_grads(params, target)
            updates, state = tx.update(grads, state, params, losses=losses)
            return (optax.apply_updates(params, updates), state), None

        params = jax.tree.map(jnp.asarray, START, is_leaf=lambda x: type(x) is list)
        carry, _ = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)
        return carry[0]

    return jax.jit(jax.vmap(one_target))(jnp.asarray(list(TARGETS.values())))


# One term is what the contracts and test_single_term say of K = 1: no new way to go.
@each_method
@pytest.mark.parametrize("terms", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("target", TARGETS)
def test_converges(name, terms, target):
    row = list(TARGETS).index(target)
    found = jax.tree.map(lambda leaf: np.asarray(leaf[row]), descend(name, terms))
    touched = {t for t, c in zip(TOUCHED, TARGETS[target], strict=True) if c}
    for leaf in START:
        if leaf not in touched:
            np.testing.assert_array_equal(found[leaf], START[leaf])
    if not METHODS[name].converges and terms == 3:
        assert_finite(found)
        return
    if METHODS[name].pareto and terms == 3 and target == "rosenbrock":
        assert_pareto_critical(found["vector"])
        return
    for leaf in touched:
        atol = METHODS[name].nearness
        np.testing.assert_allclose(found[leaf], MINIMUM[leaf], rtol=0, atol=atol)


def assert_pareto_critical(xy):
    """No direction helps all of Rosenbrock's terms; it did at the start."""

    def shortest(at):
        rows = np.asarray(jax.jacobian(rosenbrock)(jnp.asarray(at)), np.float64)
        return np.linalg.norm(min_norm_point(rows)[0])

    assert shortest(xy) <= 1e-3 * shortest(START["vector"])


# Types. Tracing finds them; nothing is compiled.

LEAVES = ("scalar", "matrix")  # few: each leaf is compiled


def example(dtype, terms):
    """Parameters, one step's gradients and losses."""
    rng = np.random.default_rng(0)
    params = {leaf: jnp.asarray(START[leaf], dtype) for leaf in LEAVES}
    grads = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=(terms, *p.shape)), dtype), params
    )
    return params, grads, jnp.asarray(1 + np.arange(terms), dtype)


@each_method
@pytest.mark.parametrize(
    ("dtype", "terms"),
    [
        # tests/test_contract.py has these two with each stage alone.
        pytest.param("float16", 3, marks=pytest.mark.slow),
        pytest.param("float32", 3, marks=pytest.mark.slow),
        ("bfloat16", 3),
        ("float32", 1),
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
        leaf: jnp.asarray(rng.normal(size=(FEW, terms, *value.shape)), jnp.float32)
        for leaf, value in params.items()
    }
    return params, grads, jnp.asarray(np.exp(rng.normal(size=(FEW, terms))))


def steps_of(tx, params, *steps):
    """The function that ``run`` compiles."""

    def step(state, data):
        grads, losses = data
        updates, state = tx.update(grads, state, params, losses=losses)
        return state, updates

    return lambda state: jax.lax.scan(step, state, steps)


def run(tx, params, *steps):
    """Updates of every step and the last state."""
    state, updates = jax.jit(steps_of(tx, params, *steps))(tx.init(params))
    return updates, state


@functools.cache
def plain(name):
    method = METHODS[name]
    return run(method.make(rising(), 2), *random_steps())[0]


def rising():
    return optax.linear_schedule(0.1, 0.4, FEW)


@each_method
def test_injected_schedule_and_hyperparameters(name):
    method = METHODS[name]
    defaults = method.defaults

    def make(**given):
        return method.make(num_terms=2, **given)

    # Optax reads the names of the hyperparameters from the signature.
    make.__signature__ = inspect.Signature(
        [
            inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY)
            for argument in ("learning_rate", *defaults)
        ]
    )
    injected = optax.inject_hyperparams(make)(learning_rate=rising(), **defaults)
    steps = random_steps()
    if defaults:
        updates, state = run(injected, *steps)
        assert_finite(updates)
        assert_close(updates, plain(name), rtol=1e-5)
    else:  # the numbers are those of the schedule, which is Adam's
        state, _ = jax.eval_shape(steps_of(injected, *steps), injected.init(steps[0]))
    assert state.hyperparams.keys() == {"learning_rate", *defaults}


# To multi_steps one weighting is like another: tests/wrappers has those that differ.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in _methods.factories()
        else name
        for name in METHODS
    ],
)
def test_accumulated_halves_are_the_step_on_their_mean(name):
    method = METHODS[name]
    params, grads, losses = random_steps()
    noise = jax.tree.map(lambda g: jnp.asarray(np.sin(1e3 * g)), grads)
    halves = jax.tree.map(
        lambda g, n: jnp.stack([g + n, g - n], 1).reshape(2 * FEW, *g.shape[1:]),
        (grads, losses),
        (noise, 0.5 * losses),
    )
    tx = multi_steps(method.make(rising(), 2), 2, every_k_schedule=2)
    found, _ = run(tx, params, *halves)
    for leaf, updates in found.items():
        assert not np.any(updates[0::2]), leaf
    assert_close(jax.tree.map(lambda u: u[1::2], found), plain(name), rtol=1e-5)
