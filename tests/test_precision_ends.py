"""Where float32 and half precision end.

What docs/precision.md says is asserted here and in test_precision.py.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests import _methods
from tests._asserts import (
    assert_close,
    assert_zero,
)
from tests._params import some
from tests._runs import all_steps

# A square must lie between float32's smallest normal number and its largest.

LARGEST = float(np.sqrt(np.finfo(np.float32).max))  # 1.8e19
SMALLEST = float(np.sqrt(np.finfo(np.float32).tiny))  # 1.1e-19


@functools.cache
def balance_of_two():
    tx = mt.balance_by_norm(2, weights=[1.0, 0.5])
    return tx.init(np.zeros(2, np.float32)), jax.jit(tx.update)


@pytest.mark.parametrize("size", [1.01 * SMALLEST, 1.0, 0.99 * LARGEST])
def test_norms_inside_the_range(size):
    grads = np.float32(size * np.eye(2))
    start, update = balance_of_two()
    found, state = update(grads, start)
    np.testing.assert_allclose(state.norms, [size, size], rtol=1e-6)
    np.testing.assert_allclose(found, grads * np.array([[1.0], [0.5]]), rtol=1e-6)


@pytest.mark.parametrize("size", [0.99 * SMALLEST, 1.01 * LARGEST])
def test_norms_outside_the_range_leave_a_term_as_it_is(size):
    # Of one element alone some versions of XLA find the root of the square exactly.
    grads = np.float32([[1.0, 0.0], [size, 0.0]])
    tx = mt.balance_by_norm(2)
    found, state = jax.jit(tx.update)(grads, tx.init(np.zeros(2, np.float32)))
    np.testing.assert_array_equal(state.norms, [1.0, 0.0])
    np.testing.assert_array_equal(found, grads)


# Two share the solver of another.
SOLVED = some(["mgda", "cagrad", "upgrad", "dual_proj"], {"mgda", "upgrad"})


@pytest.mark.parametrize("name", SOLVED)
def test_gramians_at_and_beyond_the_end_of_the_range(name):
    rows = np.array([[1.0, 0.0], [-0.6, 0.8]])
    tx = mt.reweight(_methods.build(name, 2), 2)
    state, update = tx.init(np.zeros(2, np.float32)), jax.jit(tx.update)
    _, plain = update(np.float32(rows), state)
    _, inside = update(np.float32(0.99 * LARGEST * rows), state)
    _, outside = update(np.float32(1.01 * LARGEST * rows), state)
    assert inside.weighting.converged
    assert not outside.weighting.converged
    assert_close(inside.weights, plain.weights, rtol=1e-6)


# With the share at which a square enters.
ROOTS = {
    "mtadam": (mt.mtadam, 1e-3),
    "adatask_adam": (mt.adatask_adam, 1e-3),
    "adatask_rmsprop": (mt.adatask_rmsprop, 1e-2),
    "ladatask_rmsprop": (mt.ladatask_rmsprop, 1e-2),
    "adatask_adagrad": (mt.adatask_adagrad, 1.0),
}


@pytest.mark.parametrize("name", ROOTS)
def test_second_moments_at_both_ends_of_the_range(name):
    make, share = ROOTS[name]
    smallest = SMALLEST / np.sqrt(share)

    # Of a state that it knows to be zero, XLA might find the root of a square exactly.
    start = make(1.0, 1).init(np.zeros(1, np.float32))

    @jax.jit
    def step(state, size, eps):
        return make(1.0, 1, eps=eps).update(jnp.full((1, 1), size), state)[0][0]

    first_step = functools.partial(step, start)
    # With the default eps a gradient beyond the end takes no step to speak of anyhow.
    default = inspect.signature(make).parameters["eps"].default
    whole, found = (first_step(size, default) for size in (1.0, 0.99 * smallest))
    inside = [first_step(size, 0.0) for size in (1.01 * smallest, 0.99 * LARGEST)]
    np.testing.assert_allclose(inside, whole, rtol=1e-6)
    for outside in (0.99 * smallest, 0.0, 1.01 * LARGEST):
        assert first_step(outside, 0.0) == 0
    np.testing.assert_allclose(found, -0.99 * smallest / 1e-8, rtol=1e-6)


# Optax's own limits, which the inner transformations of a method bring with them.


def test_optax_adam_in_float16_needs_a_larger_eps():
    zero, params = np.zeros((1, 2), np.float16), np.zeros(2, np.float16)
    adam, of_terms = optax.adam(0.1), (mt.mtadam(0.1, 1), mt.adatask_adam(0.1, 1))

    @jax.jit
    def steps(zero):
        alone, _ = adam.update(zero[0], adam.init(params), params)
        return alone, [tx.update(zero, tx.init(params), params)[0] for tx in of_terms]

    updates, ours = steps(zero)
    assert np.all(np.isnan(updates))
    assert_zero(ours)


def test_optax_loses_digits_in_the_bias_correction_of_float32():
    # Equal gradients make every step of Adam 1 long.
    grads = np.full((40, 1, 1), 0.3, np.float32)
    for tx, low, high in (
        (mt.per_term(optax.scale_by_adam(eps=0.0), 1), 5e-6, 3e-5),
        (mt.scale_by_max_adam(1, eps=0.0), 0, 1e-6),
    ):
        updates, _ = all_steps(tx, grads, np.zeros(1, np.float32))
        assert low <= float(np.max(np.abs(updates - 1))) <= high


def test_optax_second_moments_in_bfloat16_stand_still():
    ones = np.ones((5000, 1, 1), jnp.bfloat16)
    params = np.zeros(1, jnp.bfloat16)
    _, states = all_steps(mt.per_term(optax.scale_by_adam(), 1), ones, params)
    assert states.nu.dtype == jnp.bfloat16
    assert float(states.nu[-1, 0, 0]) == 0.5  # a thousandth of the rest is no unit
    _, states = all_steps(mt.scale_by_max_adam(1), ones, params)
    assert float(states.nu[-1, 0, 0]) == pytest.approx(1 - 0.999**5000, rel=1e-4)
