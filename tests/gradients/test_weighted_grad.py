"""Weights first, then one backward pass: the same gradients."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    Weighting,
    by_norm,
    equal,
    inexact_mgda,
    mgda,
    pcgrad,
    reweight,
    softadapt,
    sum_terms,
    value_and_term_grads,
    value_and_weighted_grad,
)
from tests import _methods
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_identical,
    assert_param_shapes,
    assert_same_signature,
    assert_same_structure,
    assert_single_trace,
    assert_strong_types,
    assert_zero,
)
from tests.gradients._weighted import (
    WAYS,
    as_dict,
    as_stack,
    column_losses,
    column_problem,
    combination,
    dots,
    doubled,
    exported,
    fit,
    make_batch,
    make_params,
    separate_grads,
    size,
    spy,
)

OF_TERMS = jax.jit(value_and_term_grads(as_dict))

# Every exported weighting.


def test_weightings_are_found():
    assert exported().keys() >= {"equal", "mgda", "pcgrad", "dwa", "inexact_mgda"}


# What is read is that of MGDA for CAGrad and a composition, of by_norm for GradNorm.
OF_THE_SAME = {"cagrad", "compose", "gradnorm"}


@pytest.mark.parametrize(
    "name",
    _methods.sampled(sorted(exported().keys() - OF_THE_SAME))
    + [pytest.param(name, marks=pytest.mark.slow) for name in sorted(OF_THE_SAME)],
)
@pytest.mark.usefixtures("x64")
def test_equals_reweight_and_sum_terms(name):
    weighting = exported()[name]()
    weighted_grad = value_and_weighted_grad(as_dict, weighting)
    chain = optax.chain(reweight(weighting, 3), sum_terms())
    update, by_chain = jax.jit(weighted_grad.update), jax.jit(chain.update)
    params = make_params()
    state, chain_state = weighted_grad.init(3), chain.init(params)
    assert_strong_types(state)
    assert_same_structure(state.weights, chain_state[0].weights)
    for step in range(5):
        x = make_batch(step)
        losses, grads, later = update(state, params, x)
        expected, each = OF_TERMS(params, x)
        total, chain_state = by_chain(each, chain_state, params, losses=expected)
        assert_close(losses, expected, rtol=1e-14)
        # A weight that is zero at the optimum is known to be nothing, not to digits.
        assert_close(grads, total, rtol=1e-9, atol=1e-15)
        assert_close(later.weights, chain_state[0].weights, rtol=1e-9)
        assert_same_signature(later, state)
        # And against K calls of jax.grad.
        rows = separate_grads(params, x)
        assert_close(grads, combination(later.weights, rows), rtol=1e-13, atol=1e-15)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
        state = later
    assert int(state.count) == 5


@pytest.mark.parametrize("losses_fn", [as_dict, as_stack])
@pytest.mark.usefixtures("x64")
def test_every_way_to_the_gramian(losses_fn):
    params, x = make_params(), make_batch()

    @jax.jit
    def by_every_way(params, x):
        pairs = [
            value_and_weighted_grad(losses_fn, spy(), gramian=way)
            for way in (None, *WAYS)
        ]
        return [pair.update(pair.init(3), params, x) for pair in pairs]

    rows = separate_grads(params, x)
    for losses, grads, state in by_every_way(params, x):
        assert_close(state.weighting, dots(rows), rtol=1e-13)
        assert_close(grads, combination(np.ones(3), rows), rtol=1e-13)
        assert_same_structure(losses, jax.eval_shape(losses_fn, params, x))
        assert_param_shapes(grads, params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("way", WAYS)
def test_losses_of_mixed_dtypes(way):
    w = np.array([2.0, -1.0])
    weighted_grad = value_and_weighted_grad(
        lambda w: {"half": (w @ w).astype(jnp.float32), "whole": jnp.sum(w**3)},
        spy(),
        gramian=way,
    )
    losses, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(2), w)
    assert losses["half"].dtype == jnp.float32
    rows = [np.array([4.0, -2.0]), np.array([12.0, 3.0])]
    assert_close(state.weighting, dots(rows), rtol=1e-6)
    assert_close(grads, rows[0] + rows[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("way", "num_terms"),
    [("leaf", 10), ("stack", 10), ("stack", 64), ("forward", 10), ("forward", 64)],
)
def test_gramian_in_float32_against_float64(way, num_terms):
    layers, x, rows = column_problem()
    weighted_grad = value_and_weighted_grad(
        column_losses(num_terms), spy(), gramian=way
    )
    _, _, state = jax.jit(weighted_grad.update)(
        weighted_grad.init(num_terms), layers, x
    )
    exact = rows[:num_terms] @ rows[:num_terms].T
    found = np.asarray(state.weighting)
    assert np.max(np.abs(found - exact)) <= 2e-6 * np.max(exact)
    assert_identical(found, found.T)


@pytest.mark.parametrize("way", ["leaf", "stack"])
def test_custom_vjp(way):
    weighted_grad = value_and_weighted_grad(
        lambda w: [jnp.sum(doubled(w)), jnp.sum(w**2)], spy(), gramian=way
    )
    update, w = jax.jit(weighted_grad.update), np.float32([1.0, 3.0])
    _, grads, state = update(weighted_grad.init(2), w)
    assert_identical(grads, np.array([4.0, 8.0]))
    assert_close(state.weighting, dots([np.array([2, 2]), np.array([2, 6])]), rtol=1e-7)


# Held weights.


def recorded(calls):
    """A weighting that tells the host each time that it runs."""
    inner = by_norm(decay=0.0)

    def update(gramian, state, **rest):
        jax.debug.callback(lambda: calls.append(1))
        return inner.update(gramian, state, **rest)

    return Weighting(inner.init, update)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.usefixtures("x64")
def test_weights_are_held(every):
    calls = []
    weighted_grad = value_and_weighted_grad(as_dict, recorded(calls), every=every)
    counted = CountedTraces(weighted_grad.update)
    step = jax.jit(counted)
    state, params, held = weighted_grad.init(3), make_params(), None
    for i in range(7):
        x = make_batch(i)
        _, grads, state = step(state, params, x)
        jax.effects_barrier()
        assert len(calls) == i // every + 1
        rows = separate_grads(params, x)
        if i % every == 0:
            norms = np.sqrt(np.diag(dots(rows)))
            held = norms[0] / norms
        assert_close(state.weights, held, rtol=1e-9)
        assert_close(grads, combination(held, rows), rtol=1e-9)
        assert int(state.count) == i + 1
    assert_single_trace(counted)


def test_a_step_with_held_weights_computes_no_gramian():
    weighted_grad = value_and_weighted_grad(as_dict, mgda(), every=4)
    program = jax.make_jaxpr(weighted_grad.update)(
        weighted_grad.init(3), make_params(), make_batch()
    )
    (switch,) = [eqn for eqn in program.eqns if eqn.primitive.name == "cond"]
    hold, find = switch.params["branches"]
    assert not hold.jaxpr.eqns
    assert len(find.jaxpr.eqns) > 50


# As a step of training.


@pytest.mark.usefixtures("x64")
def test_one_term_is_value_and_grad():
    params, x = make_params(), make_batch()
    weighted_grad = value_and_weighted_grad(fit, mgda())
    loss, grads, _ = jax.jit(weighted_grad.update)(weighted_grad.init(1), params, x)
    expected = jax.jit(jax.value_and_grad(fit))(params, x)
    assert_close((loss, grads), expected, rtol=1e-14)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_one_trace_donated_and_scanned(every):
    # One whose state holds losses, and one whose state holds a key.
    weighting = softadapt() if every == 1 else pcgrad(jax.random.key(1))
    weighted_grad = value_and_weighted_grad(as_dict, weighting, every=every)
    tx = optax.adam(0.01)

    def train(carry, x):
        params, opt_state, state = carry
        losses, grads, state = weighted_grad.update(state, params, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, state), losses

    def start():
        params = jax.device_put(make_params(jnp.float32))
        return params, tx.init(params), weighted_grad.init(3)

    batches = np.stack([make_batch(i) for i in range(6)])
    scanned, losses = jax.jit(lambda c: jax.lax.scan(train, c, batches))(start())
    counted = CountedTraces(train)
    step, carry = jax.jit(counted, donate_argnums=0), start()
    for x in batches:
        carry, last = step(carry, x)
    assert_single_trace(counted)
    assert_close(carry[0], scanned[0], rtol=1e-5)
    assert_close(last, jax.tree.map(lambda v: np.asarray(v)[-1], losses), rtol=1e-5)


def test_losses_fn_is_traced_once():
    counted = CountedTraces(as_dict)
    weighted_grad = value_and_weighted_grad(lambda p, x: counted(p, x), mgda(), every=2)
    step, state = jax.jit(weighted_grad.update), weighted_grad.init(3)
    for i in range(3):
        _, _, state = step.eval_shape(state, make_params(jnp.float32), make_batch(i))
    assert_single_trace(counted)


@pytest.mark.usefixtures("x64")
def test_aux_and_keyword_arguments():
    def losses_fn(p, x, *, power):
        return {"a": fit(p, x), "b": size(p, x) ** power}, {
            "hidden": 2 * x,
            "n": "text",
        }

    params, x = make_params(), make_batch()
    weighted_grad = value_and_weighted_grad(losses_fn, equal(), has_aux=True)

    @jax.jit
    def compared(params, x):
        (losses, aux), grads, _ = weighted_grad.update(
            weighted_grad.init(2), params, x, power=2
        )
        assert set(losses) == {"a", "b"}
        assert aux["n"] == "text"
        expected = jax.grad(lambda p: (fit(p, x) + size(p, x) ** 2) / 2)(params)
        return aux["hidden"], grads, expected

    hidden, grads, expected = compared(params, x)
    assert_identical(hidden, 2 * x)
    assert_close(grads, expected, rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_weights_are_constants_to_a_derivative():
    # Through the weights there is no derivative, only through J^T w.
    x = make_batch()
    weighted_grad = value_and_weighted_grad(as_dict, mgda())
    params = make_params()
    direction = jax.tree.map(np.ones_like, params)

    def found(p):
        _, grads, state = weighted_grad.update(weighted_grad.init(3), p, x)
        return grads, state.weights

    @jax.jit
    def derivatives(params):
        along = (params,), (direction,)
        (_, weights), (tangent, _) = jax.jvp(found, *along)
        # In reverse, too, in spite of the solver's loop.
        inner = jax.grad(lambda p: optax.tree.vdot(found(p)[0], direction))(params)
        expected = jax.grad(lambda p: jnp.dot(weights, as_stack(p, x)))
        return tangent, inner, jax.jvp(expected, *along)[1]

    tangent, inner, reference = derivatives(params)
    assert_close(tangent, reference, rtol=1e-9)
    assert_close(inner, reference, rtol=1e-9)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)]
)
def test_gradients_keep_the_dtype_of_the_parameters(dtype):
    params = make_params(dtype)

    def losses_fn(p, x):
        return as_stack(jax.tree.map(lambda v: v.astype(jnp.float32), p), x)

    weighted_grad = value_and_weighted_grad(losses_fn, by_norm())
    x = make_batch().astype(np.float32)
    _, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(3), params, x)
    assert_param_shapes(grads, params)
    assert state.weights.dtype == jnp.float32
    wide = jax.tree.map(lambda v: v.astype(np.float32), params)
    expected = combination(state.weights, separate_grads(wide, x))
    assert_close(grads, expected, rtol=2 * float(jnp.finfo(dtype).eps))


def test_a_step_that_is_not_ready_has_zero_gradients():
    weighted_grad = value_and_weighted_grad(as_dict, inexact_mgda(eps=1e6))
    params, x = make_params(jnp.float32), make_batch()
    _, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(3), params, x)
    assert not bool(state.weighting.ready)
    assert_zero(grads)
    assert_zero(state.weights)
    tx = optax.transforms.conditionally_transform(
        optax.adam(0.1), lambda step, ready: ready, forward_extra_args=True
    )
    before, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    updates, after = update(grads, before, params, ready=state.weighting.ready)
    assert_zero(updates)
    assert_identical(after.inner_state, before.inner_state)


def test_a_mixing_matrix_in_the_state():
    weighted_grad = value_and_weighted_grad(as_dict, pcgrad(jax.random.key(0)))
    assert_identical(weighted_grad.init(3).weights, np.eye(3))
    assert_identical(
        value_and_weighted_grad(as_dict, mgda()).init(3).weights, np.ones(3)
    )


@pytest.mark.slow  # outside jit each operation is a program
def test_the_page_runs():
    page = Path(__file__).parents[2] / "docs" / "weighted_grad.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    assert set(namespace["losses"]) == {"y", "z"}
