"""multi_steps: one step on the means over several microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_identical,
    assert_message,
    assert_same_signature,
    assert_single_trace,
    assert_zero,
)
from tests._runs import all_steps, first_step
from tests.wrappers._recorder import recorder

K, EVERY, STEPS = 3, 4, 3
PARAMS = {"w": np.zeros((2, 2)), "b": np.zeros(3)}
SIZES = np.array([0.1, 1.0, 50.0])

INNER = {
    "mtadam": lambda: mt.mtadam(0.1, K),
    "mtadam, decay": lambda: mt.mtadam(0.1, K, weight_decay=0.1),
    "adatask_adam": lambda: mt.adatask_adam(0.1, K),
    "mgda": lambda: mt.weighted(mt.mgda(), optax.adam(0.1), K),
    "softadapt": lambda: mt.weighted(mt.softadapt(), optax.adam(0.1), K),
    "optax.chain": lambda: optax.chain(
        mt.balance_by_norm(K),
        mt.reweight(mt.dwa(), K),
        mt.sum_terms(),
        optax.clip_by_global_norm(1.0),
        optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
    ),
    "chain": lambda: mt.chain(
        mt.per_term(optax.scale_by_rms(), K), mt.sum_terms(), optax.sgd(0.1, 0.9)
    ),
}


def draw(steps=STEPS * EVERY, seed=0):
    """Gradients [steps, K, *p] and losses [steps, K]; NumPy, float64."""
    rng = np.random.default_rng(seed)
    grads = {
        name: SIZES.reshape(K, *(1,) * leaf.ndim)
        * rng.normal(1.0, 1.0, size=(steps, K, *leaf.shape))
        for name, leaf in PARAMS.items()
    }
    return grads, SIZES * rng.uniform(0.5, 1.5, size=(steps, K))


def run(tx, grads, losses, params):
    """Parameters and updates after every step, and the last state."""

    def step(carry, batch):
        params, state = carry
        grads, losses = batch
        updates, state = tx.update(grads, state, params, losses=losses)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, updates)

    @jax.jit
    def descend(params, data):
        (_, state), history = jax.lax.scan(step, (params, tx.init(params)), data)
        return *history, state

    return jax.device_get(descend(params, (grads, losses)))


def single(tree):
    return jax.tree.map(np.float32, tree)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name in ("mtadam", "adatask_adam", "softadapt", "chain")
            else [],
        )
        for name in INNER
    ],
)
def test_is_the_step_on_the_large_batch(name, x64):
    grads, losses = draw()

    def mean(x):
        return np.mean(x.reshape(STEPS, EVERY, *x.shape[1:]), axis=1)

    params = jax.tree.map(np.ones_like, PARAMS)
    found, updates, state = run(
        mt.multi_steps(INNER[name](), K, EVERY), grads, losses, params
    )
    large = jax.tree.map(mean, grads), mean(losses)
    expected, _, plain_state = run(INNER[name](), *large, params)
    last = slice(EVERY - 1, None, EVERY)
    assert_close(jax.tree.map(lambda x: x[last], found), expected, rtol=1e-9)
    assert_close(state.inner_opt_state, plain_state, rtol=1e-9)
    waiting = [i for i in range(STEPS * EVERY) if (i + 1) % EVERY]
    assert_zero(jax.tree.map(lambda u: u[np.array(waiting)], updates))
    assert int(state.gradient_step) == STEPS


def test_microbatches_of_a_real_loss():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3)).astype(np.float32)

    def losses_fn(w, x):
        return {
            "a": jnp.mean((x @ w - 1.0) ** 2),
            "b": 100 * jnp.mean(jnp.cos(x @ w)),
            "c": jnp.mean(jnp.abs(x @ w)),
        }

    w = jnp.asarray(rng.normal(size=3), jnp.float32)
    inner = mt.weighted(mt.softadapt(), optax.sgd(0.1), K)
    tx = mt.multi_steps(inner, K, 4)

    def step(tx, state, rows):
        losses, grads = mt.value_and_term_grads(losses_fn)(w, rows)
        updates, state = tx.update(grads, state, w, losses=losses)
        return state, updates

    @jax.jit
    def both(x):
        expected = step(inner, inner.init(w), x)
        parts = x.reshape(4, 2, 3)
        return expected, jax.lax.scan(functools.partial(step, tx), tx.init(w), parts)

    (plain, expected), (state, updates) = jax.device_get(both(x))
    assert_close(updates[-1], expected, rtol=1e-5)
    assert_close(state.inner_opt_state, plain, rtol=1e-5)


@pytest.mark.parametrize(
    "every",
    [
        1,
        pytest.param(3, marks=pytest.mark.slow),
        lambda step: jnp.where(step < 2, 2, 3),
    ],
)
def test_one_term_is_optax_multi_steps(every):
    ours = mt.multi_steps(mt.adatask(optax.adam(0.1), 1), 1, every)
    theirs = optax.MultiSteps(optax.adam(0.1), every)

    def step(states, grad):
        lifted = jax.tree.map(lambda g: g[None], grad)
        found, state = ours.update(lifted, states[0], PARAMS)
        expected, their_state = theirs.update(grad, states[1], PARAMS)
        states = state, their_state
        return states, (found, expected, *states)

    @jax.jit
    def run(params, grads):
        return jax.lax.scan(step, (ours.init(params), theirs.init(params)), grads)[1]

    grads = jax.tree.map(lambda g: g[:, 0], draw(9)[0])
    history = jax.device_get(run(*single((PARAMS, grads))))
    for t in range(9):
        updates, expected, state, other = jax.tree.map(lambda x, t=t: x[t], history)
        assert_close(updates, expected, rtol=1e-6)
        assert int(state.mini_step) == int(other.mini_step)
        assert int(state.gradient_step) == int(other.gradient_step)
        if int(state.mini_step):
            unstacked = jax.tree.map(lambda g: g[0], state.acc_grads)
            assert_close(unstacked, other.acc_grads, rtol=1e-6)
    assert int(state.gradient_step) >= 3


def test_inner_is_untouched_between_steps():
    params, grads = single((PARAMS, draw(3)[0]))
    tx = mt.multi_steps(mt.mtadam(0.1, K), K, 2)
    counted = CountedTraces(tx.update)
    update = jax.jit(counted)
    start = jax.jit(tx.init)(params)
    first, second, third = (jax.tree.map(lambda g, t=t: g[t], grads) for t in range(3))
    _, state = update(first, start, params)
    assert_identical(state.inner_opt_state, start.inner_opt_state)
    assert int(state.mini_step) == 1
    _, state = update(second, state, params)
    assert (int(state.mini_step), int(state.gradient_step)) == (0, 1)
    # The step's means stay until the next microbatch, which starts anew.
    means = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
    assert_close(state.acc_grads, means, rtol=1e-6)
    assert state.acc_count.tolist() == [2, 2, 2]
    _, after = update(third, state, params)
    assert_identical(after.acc_grads, third)
    assert after.acc_count.tolist() == [1, 1, 1]
    assert_identical(after.inner_opt_state, state.inner_opt_state)
    assert_same_signature(after, start)
    assert_single_trace(counted)


def test_a_term_has_the_mean_over_where_it_was():
    grads, losses = draw(4)
    # The second term is absent from the first microbatch and from the last.
    present = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
    for step in range(4):  # what an absent term holds must not matter
        losses[step, ~present[step]] = np.nan
        for leaf in grads.values():
            leaf[step, ~present[step]] = np.inf
    tx = mt.multi_steps(recorder(K), K, 4)
    given = {"losses": single(losses), "present": present}
    updates, states = all_steps(tx, *single((grads, PARAMS)), **given)
    updates, seen = jax.tree.map(lambda x: x[-1], (updates, states.inner_opt_state))

    def mean(values, term):
        rows = values[present[:, term], term]
        return rows.mean(axis=0) if len(rows) else np.zeros(values.shape[2:])

    expected = {
        name: np.stack([mean(leaf, i) for i in range(K)])
        for name, leaf in grads.items()
    }
    assert_close(seen.grads, expected, rtol=1e-6)
    means = np.array([mean(losses, i) for i in range(K)])
    np.testing.assert_allclose(seen.losses, means, rtol=1e-6)
    assert seen.present.tolist() == [True, True, False]
    total = jax.tree.map(lambda g: g.sum(axis=0), expected)
    assert_close(updates, total, rtol=1e-5)


def test_present_and_losses_are_forwarded_only_if_passed():
    grads, losses = jax.tree.map(lambda x: x[0], single(draw(1)))
    tx = mt.multi_steps(recorder(K), K, 1)
    _, state = first_step(tx, grads, single(PARAMS))
    assert state.inner_opt_state.losses.tolist() == [-1, -1, -1]  # as at the start
    assert not state.inner_opt_state.present.any()
    assert int(state.inner_opt_state.count) == 1
    _, state = first_step(tx, grads, single(PARAMS), losses=losses)
    np.testing.assert_allclose(state.inner_opt_state.losses, losses, rtol=1e-6)


@pytest.mark.parametrize(
    "losses",
    [
        {"a": 1.0, "b": np.ones((), jnp.bfloat16), "c": np.float16(3.0)},
        np.ones(3, jnp.bfloat16),
        (np.ones(3, np.float32),),
        [np.float32(1.0), (np.float32(2.0), np.float32(3.0))],
    ],
)
def test_losses_keep_their_structure(losses):
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return jax.tree.map(lambda u: u[0], updates), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    tx = mt.multi_steps(inner, K, 1)
    update = functools.partial(tx.update, value="kept")
    state = jax.eval_shape(tx.init, np.zeros(2))
    jax.eval_shape(update, np.ones((K, 2)), state, losses=losses)
    assert seen.keys() == {"losses", "value"}
    assert seen["value"] == "kept"
    assert jax.tree.structure(seen["losses"]) == jax.tree.structure(losses)
    for found, given in zip(
        jax.tree.leaves(seen["losses"]), jax.tree.leaves(losses), strict=True
    ):
        assert (found.shape, found.dtype) == (jnp.shape(given), jnp.result_type(given))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_means_are_taken_in_float32(dtype):
    # A running mean in bfloat16 would no longer move after a few dozen microbatches.
    every = 64
    rng = np.random.default_rng(0)
    rows = (1 + rng.uniform(size=(every, 1, 5))).astype(jnp.dtype(dtype))
    tx = mt.multi_steps(recorder(1), 1, every)
    updates, states = all_steps(tx, rows, np.zeros(5, rows.dtype))
    assert states.acc_grads.dtype == jnp.float32
    assert updates.dtype == dtype
    expected = np.float64(rows).mean(axis=0)[0]
    half_a_digit = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(
        np.float64(updates[-1]), expected, rtol=1.01 * half_a_digit
    )


def test_more_microbatches_than_one_step_needs_do_not_drift():
    # Equal microbatches leave the mean where it was, bit for bit.
    grads = np.random.default_rng(0).normal(size=(K, 5)).astype(np.float32)
    _, states = all_steps(mt.multi_steps(recorder(K), K, 7), np.stack([grads] * 7))
    assert_identical(states.inner_opt_state.grads[-1], grads)


def test_a_traced_number_of_microbatches():
    tx = optax.inject_hyperparams(mt.multi_steps, static_args=("inner", "num_terms"))(
        inner=recorder(K), num_terms=K, every_k_schedule=2
    )
    _, states = all_steps(tx, np.ones((4, K, 5), np.float32))
    assert optax.tree.get(states, "gradient_step").tolist() == [0, 1, 1, 2]


@pytest.mark.usefixtures("own_errors")
def test_bad_arguments_are_refused():
    inner = mt.mtadam(0.1, K)
    for bad in (0, -2, True):
        with pytest.raises(ValueError, match="every_k_schedule must be at least 1"):
            mt.multi_steps(inner, K, bad)
    with pytest.raises(TypeError, match="every_k_schedule must be an int or a func"):
        mt.multi_steps(inner, K, 2.5)
    with pytest.raises(TypeError, match="multi_steps: inner must be an optax"):
        mt.multi_steps(0.1, K, 2)
    tx = mt.multi_steps(inner, K, 2)
    grads, state = jnp.ones((K, 2)), tx.init(jnp.zeros(2))
    with pytest.raises(ValueError, match="losses must hold num_terms=3 values"):
        tx.update(grads, state, losses=jnp.ones(2))
    with pytest.raises(ValueError, match="present must be an array of booleans"):
        tx.update(grads, state, present=jnp.ones(3))


@pytest.mark.parametrize(
    "inner",
    [
        optax.chain(mt.balance_by_norm(K), optax.sgd(0.1)),
        optax.chain(mt.balance_by_norm(K), optax.adam(0.1)),
        optax.adam(0.1),
    ],
)
def test_inner_without_an_aggregator_is_refused(inner):
    params = {"w": np.zeros(2, np.float32)}
    tx = mt.multi_steps(inner, K, 2)
    with pytest.raises(ValueError, match="term axis") as error:
        first_step(tx, {"w": np.ones((K, 2), np.float32)}, params)
    assert_message(
        error.value, "multi_steps", "inner", "updates['w']", "(3, 2)", "sum_terms()"
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: mt.multi_steps(inner, K, 2),
        lambda inner: mt.apply_if_finite(inner, K, 2),
        lambda inner: mt.masked(inner, True, K),
    ],
)
def test_an_ordinary_stage_before_the_aggregator_of_inner_is_refused(wrap):
    params = {"w": np.zeros(2, np.float32)}
    tx = wrap(optax.chain(optax.trace(0.9), mt.sum_terms()))
    with pytest.raises(ValueError, match="a stage of inner was initialised") as error:
        first_step(tx, {"w": np.ones((K, 2), np.float32)}, params)
    assert_message(error.value, "trace['w']", "(2,)", "(3, 2)", "per_term")
