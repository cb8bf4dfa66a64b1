"""Adaptive MGDA against the thesis' algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import adaptive_mgda, inexact_mgda, weighted
from tests._asserts import assert_close, assert_identical, assert_message, assert_zero
from tests._problems import SHAPES, sizes
from tests._runs import all_steps
from tests.references import adaptive_mgda as reference

STEPS, EPOCH = 32, 5


class Noisy:
    """K quadratic terms with targets near each other, and minibatch noise."""

    def __init__(self, terms, seed):
        rng = np.random.default_rng(seed)
        self.start = [rng.normal(size=s) for s in SHAPES]
        self.target = [0.3 * rng.normal(size=(terms, *s)) for s in SHAPES]
        self.noise = [0.5 * rng.normal(size=(STEPS, terms, *s)) for s in SHAPES]
        self.terms = terms

    def numpy_gradients(self, t, theta):
        return [
            [
                theta[p] - self.target[p][i] + self.noise[p][t - 1, i]
                for p in range(len(SHAPES))
            ]
            for i in range(self.terms)
        ]

    def run(self, tx):
        def step(carry, noise):
            theta, state = carry
            grads = tuple(
                x[None] - target + n
                for x, target, n in zip(theta, self.target, noise, strict=True)
            )
            updates, state = tx.update(grads, state, theta)
            theta = optax.apply_updates(theta, updates)
            own = getattr(state, "inner_state", state)  # where they are injected
            weighting = own.weighted.reweight.weighting
            return (theta, state), (theta, own.eps, weighting)

        @jax.jit
        def descend(theta, noise):
            return jax.lax.scan(step, (theta, tx.init(theta)), noise)[1]

        return jax.tree.map(np.asarray, descend(tuple(self.start), tuple(self.noise)))


@pytest.mark.parametrize("rule", ["std", "variance"])
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_agrees_with_the_algorithm(x64, record_deviation, rule, terms):
    problem = Noisy(terms, seed=terms)
    lam = {2: 0.7, 3: 0.55, 10: 0.35}[terms]
    lam = lam if rule == "std" else lam**2
    make = adaptive_mgda
    if rule == "variance":  # its numbers are traced, too
        static = ("inner", "num_terms", "rule")
        make = optax.inject_hyperparams(adaptive_mgda, static_args=static)
    options = {"scale": lam, "steps_per_epoch": EPOCH, "rule": rule}
    tx = make(inner=optax.sgd(0.1), num_terms=terms, **options)
    history, eps, weighting = problem.run(tx)
    expected, notes = reference.descend(
        problem.start,
        problem.numpy_gradients,
        STEPS,
        eta=0.1,
        lam=lam,
        epoch=EPOCH,
        rule=rule,
    )
    taken = [note[1] for note in notes]
    assert 0 < sum(taken) < STEPS  # the problem has steps of both kinds
    assert weighting.ready.tolist() == taken
    assert weighting.skipped[-1] == STEPS - sum(taken)
    deviation = 0.0
    for t in range(STEPS):
        for p, start in enumerate(problem.start):
            gap = np.max(np.abs(history[p][t] - expected[t][p]))
            deviation = max(deviation, gap / np.max(np.abs(expected[t][p] - start)))
    bounds = np.array([note[0] for note in notes])
    deviation = max(deviation, np.max(np.abs(eps - bounds)) / bounds.max())
    record_deviation(f"adaptive_mgda, {rule}", deviation)
    assert deviation < 1e-9


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_first_epoch_is_plain_mgda():
    grads = normal(3, 2, 4)
    tx = adaptive_mgda(optax.adam(0.1), 2, 100.0, steps_per_epoch=4)
    adaptive, states = all_steps(tx, grads)
    plain, _ = all_steps(weighted(inexact_mgda(0.0), optax.adam(0.1), 2), grads)
    assert_close(adaptive, plain, rtol=1e-6)
    assert_zero(states.eps)


def test_skipped_step_leaves_the_inner_state_untouched():
    tx = adaptive_mgda(optax.adam(0.1), 2, 1e3, steps_per_epoch=2)
    updates, states = all_steps(tx, normal(5, 2, 4))
    before, after = (jax.tree.map(lambda x, t=t: x[t], states) for t in (1, 4))
    assert_zero(updates[4])
    assert_identical(after.weighted.inner, before.weighted.inner)
    assert int(after.weighted.reweight.weighting.skipped) == 3
    # Their gradients count all the same.
    assert np.all(after.eps != before.eps)


def test_variance_keeps_its_digits_beside_a_large_mean():
    # mean |g|^2 - |mean g|^2 in float32 would have none left.
    grads = normal(50, 2, 30) + np.float32(1e4)
    tx = adaptive_mgda(optax.sgd(0.0), 2, 1.0, steps_per_epoch=50)
    _, states = all_steps(tx, grads)
    exact = np.asarray(grads, np.float64)
    spread = np.mean(np.sum((exact - exact.mean(axis=0)) ** 2, axis=2), axis=0)
    np.testing.assert_allclose(states.eps[-1], np.sqrt(spread), rtol=1e-3)


def test_constant_gradients_have_no_spread():
    tx = adaptive_mgda(optax.sgd(0.1), 2, steps_per_epoch=3)
    grads = np.tile(np.float32([[1e3, 0.1, 0, 0], [0.1, 7, 0, 0]]), (6, 1, 1))
    _, states = all_steps(tx, grads)
    np.testing.assert_allclose(states.eps[-1], 0, atol=1e-3)


def test_state_is_k_copies():
    params = {"a": jnp.zeros((5, 3), jnp.bfloat16), "b": jnp.zeros(7)}
    tx = adaptive_mgda(optax.sgd(0.1), 4, steps_per_epoch=3)
    state = jax.eval_shape(tx.init, params)
    assert sum(x.size for x in jax.tree.leaves(state.mean)) == 4 * 22
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.mean))
    rest = jax.tree.leaves(state._replace(mean=None))
    # Weights, eps, spread, the terms' counts; counters and flags.
    assert sum(x.size for x in rest) == 4 * 4 + 4


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"scale": -1.0}, "scale"),
        ({"steps_per_epoch": 0}, "steps_per_epoch"),
        ({"rule": "mean"}, "rule"),
    ],
)
def test_bad_arguments_are_named(own_errors, options, argument):
    with pytest.raises(ValueError, match=f"{argument} must be") as caught:
        adaptive_mgda(optax.sgd(0.1), 2, **{"steps_per_epoch": 2, **options})
    assert_message(caught.value, "adaptive_mgda", "found")
    with pytest.raises(TypeError, match="inner must be"):
        adaptive_mgda(0.1, 2, steps_per_epoch=2)


RULES = {
    rule: adaptive_mgda(optax.sgd(0.1), 2, 0.01, steps_per_epoch=3, rule=rule)
    for rule in ("std", "variance")
}


def spoilt(value):
    """Three epochs of gradients, one of which is not finite: [9, 2, 2]."""
    rng = np.random.default_rng(0)
    # Two terms that agree but for small noise: no step is skipped for the bounds.
    clean = [[1.0, 0.2], [1.0, -0.2]] + 0.1 * rng.normal(size=(9, 2, 2))
    grads = clean.astype(np.float32)
    grads[4, 0, 1] = value  # in the second epoch, of the first term
    return grads


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_that_are_not_finite_are_left_out(rule, value):
    grads = spoilt(value)
    updates, states = all_steps(RULES[rule], grads)
    with np.errstate(invalid="ignore"):
        epochs = grads.astype(np.float64).reshape(3, 3, 2, 2)
        variance = np.sum(np.var(epochs, axis=1), axis=-1)
    bounds = 0.01 * np.sqrt(variance) if rule == "std" else np.sqrt(0.01 * variance)
    # The first term has no measurement in the second epoch, and keeps its bound.
    expected = [bounds[0], [bounds[0, 0], bounds[1, 1]], bounds[2]]
    np.testing.assert_allclose(states.eps[2::3], expected, rtol=1e-4)
    # Only the step of that gradient is left out.
    ready = states.weighted.reweight.weighting.ready
    assert ready.tolist() == [t != 4 for t in range(9)]
    assert np.all(np.isfinite(updates))
    assert np.any(updates != 0, axis=1).tolist() == ready.tolist()


# Each of its operations is a program; tests/test_contract.py has finite ones eagerly.
@pytest.mark.slow
def test_not_finite_gradients_are_the_same_eagerly_and_under_jit():
    tx, grads = RULES["std"], spoilt(np.nan)
    state = tx.init(jnp.zeros(2))
    history = all_steps(tx, grads)
    for t, grad in enumerate(grads):
        jitted = jax.tree.map(lambda x, t=t: x[t], history)
        _, state = eager = tx.update(jnp.asarray(grad), state)
        # NaN equals NaN here: the mean of the second epoch is not finite.
        for one, other in zip(
            jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
