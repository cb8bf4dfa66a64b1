"""Weights and one backward pass for the terms that are there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import (
    constant,
    dwa,
    inexact_mgda,
    mgda,
    pcgrad,
    value_and_weighted_grad,
)
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_identical,
    assert_single_trace,
    assert_zero,
)
from tests.gradients._weighted import (
    SEPARATE,
    SHARED,
    as_stack,
    combination,
    exported,
    head_losses,
    make_batch,
    make_heads,
    make_params,
    separate_grads,
    spy,
)


def known_losses(p, x, known):
    """The three losses, NaN where they are not known; that is safe to differentiate."""
    return jnp.where(known, as_stack(p, x), jnp.nan)


def readable(leaf):
    """A NumPy array, which is indexed without compiling; keys stay what they are."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def absent_run(weighting, masks, **options):
    """Gradients and states of some steps, jitted, traced once."""
    weighted_grad = value_and_weighted_grad(known_losses, weighting, **options)
    counted = CountedTraces(
        lambda s, known, *args: weighted_grad.update(s, *args, known, present=known)
    )
    step, state, history = jax.jit(counted), weighted_grad.init(3), []
    for mask in masks:
        mask = np.asarray(mask, bool)
        losses, grads, state = step(state, mask, make_params(), make_batch())
        assert_identical(np.isnan(losses), ~mask)
        history.append((grads, jax.tree.map(readable, state)))
    assert_single_trace(counted)
    return history


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("mgda", "leaf"),
        ("pcgrad", "forward"),
        ("dwa", None),
        pytest.param("pcgrad", None, marks=pytest.mark.slow),
        pytest.param("mgda", "forward", marks=pytest.mark.slow),
        pytest.param("mgda", "stack", marks=pytest.mark.slow),
        pytest.param("equal", None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_step_without_a_term_is_that_of_the_smaller_problem(name, way):
    at, mask = [0, 2], [True, False, True]
    history = absent_run(exported()[name](), [mask] * 3, gramian=way)
    fewer = value_and_weighted_grad(
        lambda p, x: jnp.stack([SEPARATE[i](p, x) for i in at]), exported()[name]()
    )
    step, state = jax.jit(fewer.update), fewer.init(2)
    for grads, whole_state in history:
        _, expected, state = step(state, make_params(), make_batch())
        assert_close(grads, expected, rtol=1e-9, atol=1e-15)
        within = np.ix_(*[at] * state.weights.ndim)
        assert_close(whole_state.weights[within], state.weights, rtol=1e-9)
        assert_zero(whole_state.weights[1])


@pytest.mark.usefixtures("x64")
def test_held_weights_of_absent_terms_are_not_used_and_not_lost():
    masks = [[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0]]
    used = [[1, 2, 0], [1, 2, 0], [1, 2, 3], [0, 0, 3], [1, 0, 3], [0, 2, 0]]
    held = [[1, 2, 0], [1, 2, 0], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    rows = separate_grads(make_params(), make_batch())
    history = absent_run(constant([1.0, 2.0, 3.0]), masks, every=2)
    for (grads, state), now, kept in zip(history, used, held, strict=True):
        assert_close(grads, combination(now, rows), rtol=1e-12)
        assert_identical(state.weights, np.asarray(kept, float))


def test_held_weights_of_an_absent_term_leave_its_gradient_out():
    # Its loss and its gradient can be computed all the same.
    rows = np.float32([[1.0, 2.0], [30.0, -10.0], [0.0, 1.0]])
    weighted_grad = value_and_weighted_grad(
        lambda w: rows @ w, constant([1.0, 2.0, 3.0]), every=2
    )
    w, state = np.ones(2, np.float32), weighted_grad.init(3)
    update = jax.jit(weighted_grad.update)
    _, found, state = update(state, w)
    assert_identical(found, rows[0] + 2 * rows[1] + 3 * rows[2])
    present = np.array([True, False, True])
    _, found, state = update(state, w, present=present)
    assert_identical(found, rows[0] + 3 * rows[2])
    assert_identical(state.weights, np.array([1.0, 2.0, 3.0]))


def test_a_held_mixing_matrix_without_a_term():
    masks = [[1, 1, 0], [1, 1, 1], [0, 1, 0]]
    history = absent_run(pcgrad(jax.random.key(0)), masks, every=3)
    rows = separate_grads(make_params(), make_batch())
    for (grads, state), mask in zip(history, masks, strict=True):
        assert_zero(state.weights[2])
        assert_zero(state.weights[:, 2])
        mixed = np.where(np.outer(mask, mask), state.weights, 0)
        assert_close(grads, combination(mixed, rows), rtol=1e-5)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_no_term_at_all(every):
    for grads, state in absent_run(dwa(), [[0, 0, 0]] * 2, every=every):
        assert_zero((grads, state.weights))
        assert_zero(state.weighting)
    grads, state = absent_run(inexact_mgda(1e-3), [[0, 0, 0]], every=every)[0]
    assert_zero((grads, state.weights))
    assert not bool(state.weighting.ready)


def test_weights_do_not_depend_on_what_an_absent_term_computes():
    # As NaN labels make it: its own derivative is NaN. One backward pass for all terms
    # cannot keep that out of the gradients, but labels that are replaced can.
    w, x = np.float32([1.0, -2.0]), np.float32([3.0, 1.0])
    known = np.array([True, False, True])
    labels = np.float32([1.0, np.nan, -1.0])

    def losses_fn(w, labels):
        return [jnp.sum((w * x - label) ** 2) for label in labels]

    weighted_grad = value_and_weighted_grad(losses_fn, mgda())
    update, state = jax.jit(weighted_grad.update), weighted_grad.init(3)
    _, _, spoiled = update(state, w, labels, present=known)
    replaced = np.where(known, labels, np.float32(0))
    _, grads, expected = update(state, w, replaced, present=known)
    assert_identical(spoiled, expected)
    rows = [2 * x * (w * x - label) for label in (1.0, -1.0)]
    weights = np.asarray(expected.weights)[[0, 2]]
    assert_close(grads, combination(weights, rows), rtol=1e-6)


def test_the_head_of_an_absent_term_stays():
    params, x = make_heads(), np.ones((4, 24), np.float32)
    weighted_grad = value_and_weighted_grad(
        head_losses, constant([1.0, 2.0, 3.0]), shared=SHARED["prefix"]
    )
    present = np.array([True, False, True])

    @jax.jit
    def compared(state, params, x):
        _, grads, _ = weighted_grad.update(state, params, x, present=present)
        return grads, [
            jax.grad(lambda p, n=n: head_losses(p, x)[n])(params)
            for n in ("h0", "h1", "h2")
        ]

    grads, rows = compared(weighted_grad.init(3), params, x)
    assert_zero(grads["heads"]["h1"])
    assert_close(grads["heads"]["h0"], rows[0]["heads"]["h0"], rtol=1e-5)
    trunk = combination([1.0, 0.0, 3.0], [row["trunk"] for row in rows])
    assert_close(grads["trunk"], trunk, rtol=1e-5)


def test_a_weighting_that_does_not_know_of_absent_terms():
    _, state = absent_run(spy(), [[1, 0, 1]])[0]
    assert_identical(state.weights, np.array([1.0, 0.0, 1.0]))
    assert_zero(state.weighting[1])
