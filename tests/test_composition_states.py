"""Hyperparameters, schedules, and reading or changing the state of a composition."""

import jax
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import (
    assert_close,
    assert_identical,
    assert_same_signature,
    assert_zero,
    named_leaves,
)
from tests._chains import (
    LOSSES,
    MATRICES,
    PARAMS,
    K,
    beside,
    by_ndim,
    draw,
    mtadam,
    steps,
)
from tests._runs import first_step

# tests/optimizers/test_battery.py does so with all that are floats by default.
TRACED = {
    "mtadam": (
        mt.mtadam,
        ("num_terms",),
        {"learning_rate": 0.1, "num_terms": K, "weight_decay": 0.1, "eps_root": 1e-8},
    ),
    "apply_if_finite": (
        mt.apply_if_finite,
        ("inner", "num_terms"),
        {"inner": mt.adatask(optax.sgd(0.1), K), "max_consecutive_errors": 2},
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_hyperparameters_may_be_traced(name):
    factory, static, options = TRACED[name]
    options = {**options, "num_terms": K}
    injected = optax.inject_hyperparams(factory, static_args=static)(**options)
    both = beside(injected, factory(**options))
    history, (state, _) = steps(both, [draw(0), draw(1)], losses=LOSSES)
    for found, expected in history:
        assert_close(found, expected, rtol=1e-5)
    assert state.hyperparams.keys() >= {
        name for name, value in options.items() if isinstance(value, float)
    }


def test_scheduled_hyperparameters_and_changes_by_hand():
    make = optax.inject_hyperparams(mt.mtadam, static_args=("num_terms",))
    tx = make(learning_rate=0.1, num_terms=K)
    update = jax.jit(tx.update)
    whole, state = first_step(tx, draw(0), PARAMS)

    # b3 from 0.9 to 0.5 in one step: two optimizers take over from one another.
    expected, _ = jax.jit(mtadam(b3=0.5).update)(draw(1), state.inner_state, PARAMS)
    found, _ = update(draw(1), optax.tree.set(state, b3=np.float32(0.5)), PARAMS)
    assert_close(found, expected, rtol=1e-5)
    b3 = optax.piecewise_constant_schedule(0.9, {1: 5 / 9})
    scheduled = make(learning_rate=0.1, num_terms=K, b3=b3)
    (_, found), _ = steps(scheduled, [draw(0), draw(1)])
    assert_close(found, expected, rtol=1e-5)

    changed = optax.tree.set(tx.init(PARAMS), learning_rate=np.float32(0.05))
    half, _ = update(draw(0), changed, PARAMS)
    assert_close(half, jax.tree.map(lambda u: u / 2, whole), rtol=1e-5)


@pytest.mark.usefixtures("own_errors")
def test_num_terms_must_not_be_injected():
    tx = optax.inject_hyperparams(mt.mtadam)(learning_rate=0.1, num_terms=K)
    with pytest.raises(TypeError, match=r"static_args=\('num_terms',\)"):
        jax.jit(tx.update)(draw(), tx.init(PARAMS), PARAMS)


WRAPPED = {
    "multi_steps": lambda: mt.multi_steps(mtadam(), K, 2),
    "apply_if_finite": lambda: mt.apply_if_finite(mtadam(), K, 3),
    "masked": lambda: mt.masked(mtadam(), by_ndim, K),
    "chain": lambda: mt.chain(mt.balance_by_norm(K), mt.scale_by_max_adam(K)),
    "all": lambda: mt.apply_if_finite(
        mt.multi_steps(
            mt.masked(mt.chain(mtadam(), optax.clip(1.0)), MATRICES, K), K, 2
        ),
        K,
        3,
    ),
    "partition": lambda: optax.partition(
        {
            "x": mt.multi_steps(mtadam(), K, 2),
            "y": mt.adatask(optax.sgd(0.1, 0.9), K),
        },
        {"b": "x", "w": "y"},
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_states_can_be_mapped_read_and_changed(name):
    tx = WRAPPED[name]()
    shapes = jax.eval_shape(tx.init, PARAMS)
    state = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    paths = [path for path, _ in named_leaves(PARAMS)]
    mapped = optax.tree.map_params(
        tx, lambda x: x + 1, state, transform_non_params=lambda x: x
    )
    seen = 0
    for (path, old), new in zip(
        named_leaves(state), jax.tree.leaves(mapped), strict=True
    ):
        # balance_by_norm keeps K numbers for each parameter, which count as its own.
        like_params = any(path.endswith(p) for p in paths)
        seen += like_params
        assert_identical(new, old + 1 if like_params else old)
    assert seen
    nu = optax.tree.get_all_with_path(state, "nu")
    assert nu
    zeros = optax.tree.set(state, nu=jax.tree.map(np.zeros_like, nu[0][1]))
    assert_zero(optax.tree.get_all_with_path(zeros, "nu")[0][1])
    assert_same_signature(zeros, state)


def test_average_of_the_parameters_in_a_scan():
    tx = mt.multi_steps(mtadam(), K, 2)
    rng = np.random.default_rng(0)
    batches = jax.tree.map(
        lambda p: rng.normal(size=(6, K, *p.shape)).astype(np.float32), PARAMS
    )

    def step(carry, grads):
        params, average, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.1)
        return (params, average, state), params

    (_, average, _), history = jax.lax.scan(
        step, (PARAMS, PARAMS, tx.init(PARAMS)), batches
    )
    expected = np.ones((3, 2))
    for params in np.asarray(history["w"], np.float64):
        expected = 0.9 * expected + 0.1 * params
    assert_close(average["w"], expected, rtol=1e-5)
