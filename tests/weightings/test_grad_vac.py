"""Gradient Vaccine against Alg. 1 on the gradients themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import grad_vac, pcgrad
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_zero,
)
from tests._methods import Method
from tests._problems import sizes
from tests.references.grad_vac import vaccinated
from tests.weightings import _jacobians

# The order of the pairs is that of the terms. With a key it is drawn, and the targets
# depend on the draws: see the tests below.
METHODS = {"grad_vac": Method(grad_vac, permutes=False)}

KEY, STEPS = 7, 30


def documented_orders(terms, steps):
    """The random orders, by the recipe of PCGrad's page."""

    def one_step(key, _):
        key, draw = jax.random.split(key)
        table = jnp.tile(jnp.arange(terms), (terms, 1))
        return key, jax.random.permutation(draw, table, axis=1, independent=True)

    scan = jax.jit(lambda key: jax.lax.scan(one_step, key, None, length=steps)[1])
    return np.asarray(scan(jax.random.key(KEY)))


@functools.cache
def _compiled(drawn, make, x64):
    del x64

    def run(gramians, decay):
        weighting = make(jax.random.key(KEY) if drawn else None, decay)

        def step(state, gramian):
            mixing, state = weighting.update(gramian, state)
            return state, (mixing, state)

        return jax.lax.scan(step, weighting.init(gramians.shape[1]), gramians)[1]

    return jax.jit(run)


def run(batch, decay, drawn=False, make=grad_vac):
    """New gradients of every step [N, K, P], and the states."""
    exact = np.asarray(batch, np.float64)
    # Zeros behind the last step, so that one program serves runs of any length.
    more = max(STEPS - len(exact), 0)
    exact = np.pad(exact, ((0, more), (0, 0), (0, 0)))
    gramians = (exact @ np.swapaxes(exact, 1, 2)).astype(np.asarray(batch).dtype)
    find = _compiled(drawn, make, bool(jax.config.jax_enable_x64))
    mixing, states = jax.tree.map(np.asarray, find(gramians, decay))
    found = np.float64(mixing) @ exact
    return jax.tree.map(lambda leaf: leaf[: len(batch)], (found, states))


def problem(terms, steps=STEPS, seed=0):
    """Gradients that agree in part, so that targets rise and are missed."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(steps, terms, 12)) + 0.7 * rng.normal(size=12)
    return rows * np.exp(2 * rng.normal(size=(terms, 1)))


def relative(found, expected):
    """Largest error, each row relative to the longest gradient of its step."""
    gaps = np.linalg.norm(found - expected, axis=2).max(axis=1)
    return np.max(gaps / np.linalg.norm(expected, axis=2).max(axis=1))


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_agrees_with_algorithm_1(x64, record_deviation, terms, drawn):
    batch = problem(terms)
    found, states = run(batch, 0.2, drawn)
    fixed = np.tile(np.arange(terms), (len(batch), terms, 1))
    orders = documented_orders(terms, len(batch)) if drawn else fixed
    targets, expected, changed = np.zeros((terms, terms)), [], 0
    for J, order in zip(batch, orders, strict=True):
        new, targets = vaccinated(J, targets, order, 0.2)
        expected.append(new)
        changed += np.any(new != J)
    assert changed > 10
    deviation = relative(found, np.stack(expected))
    record_deviation("grad_vac", deviation)
    assert deviation < 1e-12
    np.testing.assert_allclose(states.targets[-1], targets, atol=1e-12)


def test_float32(record_deviation):
    batch = problem(3, seed=3)
    with jax.enable_x64(True):
        expected, _ = run(batch, 0.2)
    found, _ = run(batch.astype(np.float32), 0.2)
    deviation = relative(found, expected)
    record_deviation("grad_vac, float32", deviation)
    assert deviation < 1e-5


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_targets_of_zero_are_pcgrad(x64, terms):
    """Only cosines below 0 are below their target, and 0 is where PCGrad stops."""
    batch = problem(terms, seed=terms)

    def surgery(key, decay):
        del decay
        return pcgrad(key)

    expected, _ = run(batch, 0.0, drawn=True, make=surgery)
    found, _ = run(batch, 0.0, drawn=True)
    assert_close(found, expected, rtol=1e-12)
    first, _ = run(batch, 0.5, drawn=True)  # each pair is met once in a step
    assert_close(first[0], expected[0], rtol=1e-12)
    assert np.any(np.abs(first[1:] - expected[1:]) > 1e-3)


def test_a_changed_gradient_has_its_target_as_cosine(x64):
    rng = np.random.default_rng(0)
    agreeing, opposed = np.eye(2) + 1.0, np.array([[1.0, 0.2], [-1.0, 0.7]])
    batch = np.stack([agreeing, opposed]) @ rng.normal(size=(2, 6))
    batch = np.pad(batch, ((0, 0), (0, 1), (0, 0)))  # a gradient of zero has no say
    found, states = run(batch, 0.5)
    target = float(states.targets[0, 0, 1])
    assert target > 0.2
    for i, j in ((0, 1), (1, 0)):
        lengths = np.linalg.norm(found[1, i]), np.linalg.norm(batch[1, j])
        cosine = found[1, i] @ batch[1, j] / lengths[0] / lengths[1]
        np.testing.assert_allclose(cosine, target, rtol=1e-12)


@pytest.mark.parametrize("power", [-50, -33, 33, 50])
def test_scale_changes_nothing(power):
    batch = problem(3).astype(np.float32)
    scale = np.float32(2.0**power)
    found, _ = run(scale * batch, 0.2)
    assert_close(found / scale, run(batch, 0.2)[0], rtol=1e-7)


def test_degenerate_gradients_stay_finite():
    batch = np.float32(
        [
            [[1, 2], [1, 2], [1, 2]],
            [[1, 2], [1, 2], [1, 2]],
            [[1, 2], [-1, -2], [0, 0]],
            np.zeros((3, 2)),
            [[1, 0], [-3, 0], [0, 2]],
            [[0, 0], [1, 1], [-1, 0]],
        ]
    )
    for decay in (0.01, 0.999):
        found, states = run(batch, decay)
        assert_finite((found, states))
        assert_zero(found[3])
        # Zero gradients have no cosines, and leave their targets as they were.
        assert_identical(states.targets[3], states.targets[2])
        assert_identical(found[:2], np.float64(batch[:2]))


def test_targets_of_one_and_gradients_that_miss_them_stay_finite():
    rng = np.random.default_rng(0)
    equal = np.ones((40, 12, 20)) * rng.normal(size=20)
    batch = np.concatenate([equal, rng.normal(size=(5, 12, 20))]).astype(np.float32)
    found, states = run(batch, 0.9)
    assert_finite((found, states))
    assert_close(states.targets[39], 1 - np.eye(12), rtol=1e-6)
    assert np.max(np.abs(found[40])) > 1e3  # as near to a cosine of 1 as can be


def test_opposed_gradients_vanish_at_first():
    found, _ = run(np.float32([[[1, 2], [-2, -4], [0, 0]]]), 0.01)
    assert_close(found, np.zeros((1, 3, 2)), rtol=0, atol=1e-6)


def test_one_gradient_alone_stays():
    found, states = run(np.float32([[[3, 4]]]), 0.01)
    assert found.tolist() == [[[3, 4]]]
    assert_zero(states.targets)


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["fixed", "drawn"])
def test_targets_of_absent_terms_stay(x64, key):
    weighting = grad_vac(key, 0.5)
    update, state = jax.jit(weighting.update), weighting.init(4)
    batch = problem(4, steps=2)
    gramians = batch @ np.swapaxes(batch, 1, 2)
    _, state = update(gramians[0], state, present=np.ones(4, bool))
    there = np.array([True, False, True, True])
    mixing, after = update(gramians[1], state, present=there)
    state, after = jax.tree.map(np.asarray, (state, after))
    pairs = there[:, None] & there[None, :]
    assert_zero(np.asarray(mixing)[~pairs])
    assert_identical(after.targets[~pairs], state.targets[~pairs])
    moved = after.targets != state.targets
    assert np.array_equal(moved, pairs & ~np.eye(4, dtype=bool))


def test_mild_gradients_of_every_kind_stay_finite_over_many_steps():
    rng = np.random.default_rng(0)
    kinds = _jacobians.WELL_POSED + _jacobians.DEGENERATE[:-1]
    batch = np.stack([kind(rng, 5, 24) for kind in 4 * kinds]).astype(np.float32)
    assert_finite(run(batch, 0.01, drawn=True))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"key": 0}, TypeError, ["key", "jax.random.key(0)", "found 0"]),
        ({"decay": 1.0}, ValueError, ["decay", "[0, 1)", "1.0"]),
    ],
)
def test_bad_arguments_are_named(own_errors, options, error, words):
    with pytest.raises(error, match="must be") as caught:
        grad_vac(**options)
    assert_message(caught.value, "grad_vac", *words)
