"""Optax around a whole K -> 1 optimizer: what fails, how, and what to use instead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import (
    assert_close,
    assert_identical,
    assert_param_shapes,
    assert_zero,
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
    total,
)

# For a wrapper that fails loudly the kind of error, for a silent one the shapes that
# leave it.

FAILS = {
    "MultiSteps": (
        lambda: optax.MultiSteps(mtadam(), 2).gradient_transformation(),
        (ValueError, "term axis is missing"),
    ),
    "apply_if_finite": (
        lambda: optax.apply_if_finite(mtadam(), 2),
        (TypeError, "cond branches must have equal output types"),
    ),
    "conditionally_transform": (
        lambda: optax.conditionally_transform(mtadam(), lambda step: step >= 0),
        (TypeError, "cond branches must have equal output types"),
    ),
    "conditionally_mask": (
        lambda: optax.conditionally_mask(mtadam(), lambda step: step >= 0),
        (TypeError, "cond branches must have equal output types"),
    ),
    "flatten": (lambda: optax.flatten(mtadam()), (ValueError, "term axis first")),
    "masked, by ndim": (
        lambda: optax.masked(mtadam(), by_ndim),
        (ValueError, "state must be as init"),
    ),
    "partition, by ndim": (
        lambda: optax.partition(
            {1: mtadam(), 2: mtadam()}, lambda p: jax.tree.map(jnp.ndim, p)
        ),
        (ValueError, "state must be as init"),
    ),
    "mechanize": (
        lambda: optax.contrib.mechanize(mtadam()),
        (TypeError, "contracting dimensions"),
    ),
    "masked": (
        lambda: optax.masked(mtadam(), MATRICES),
        {"b": (K, 2), "w": (3, 2)},
    ),
    "selective_transform": (
        lambda: optax.selective_transform(mtadam(), freeze_mask={"b": 1, "w": 0}),
        {"b": (K, 2), "w": (3, 2)},
    ),
    "partition with set_to_zero": (
        lambda: optax.partition(
            {"x": mtadam(), "y": optax.set_to_zero()}, {"b": "y", "w": "x"}
        ),
        {"b": (K, 2), "w": (3, 2)},
    ),
    "partition with an ordinary optimizer": (
        lambda: optax.partition(
            {"x": mtadam(), "y": optax.adam(0.1)}, {"b": "y", "w": "x"}
        ),
        {"b": (K, 2), "w": (3, 2)},
    ),
    "sam": (
        lambda: optax.contrib.sam(mtadam(), optax.sgd(0.1)),
        {"b": (K, 2), "w": (K, 3, 2)},
    ),
}


@pytest.mark.parametrize("name", FAILS)
def test_around_a_whole_optimizer_these_fail(name):
    build, outcome = FAILS[name]
    tx = build()
    state = tx.init(PARAMS)
    if isinstance(outcome, dict):
        updates, _ = jax.eval_shape(tx.update, draw(), state, PARAMS)
        assert {key: u.shape for key, u in updates.items()} == outcome
        # What Optax does without a word, chain refuses.
        with pytest.raises(ValueError, match="term axis"):
            jax.eval_shape(mt.chain(tx).update, draw(), (state,), PARAMS)
    else:
        kind, words = outcome
        with pytest.raises(kind, match=words):
            jax.eval_shape(tx.update, draw(), state, PARAMS)


def test_conditions_go_inside_or_after():
    # K -> K inside conditionally_transform; the rest after the aggregator.
    def even(step):
        return step % 2 == 0

    tx = mt.chain(
        optax.conditionally_transform(mt.balance_by_norm(K), even),
        mt.sum_terms(),
        optax.conditionally_mask(optax.sgd(1.0), even),
    )
    both = beside(tx, mt.balance_by_norm(K))
    ((first, balanced), (second, _)), _ = steps(both, [draw(0), draw(1)])
    assert_close(first, jax.tree.map(np.negative, total(balanced)), rtol=1e-6)
    assert_zero(second)


def test_partition_of_trunk_and_heads():
    labels = {"b": "head", "w": "trunk"}
    inner = {
        "trunk": mtadam(weight_decay=0.1),
        "head": optax.chain(mt.sum_terms(), optax.adam(0.1)),
    }
    batches = [draw(0), draw(1)]
    by_itself = {
        key: steps(inner[label], [grads[key] for grads in batches], PARAMS[key])[0]
        for key, label in labels.items()
    }
    both = beside(
        optax.partition(inner, labels),
        mt.chain(optax.partition(inner, lambda _: labels), optax.identity()),
    )
    found, _ = steps(both, batches, losses=LOSSES)
    for one in zip(*found, strict=True):
        for key in labels:
            assert_close([updates[key] for updates in one], by_itself[key], rtol=1e-6)


def test_frozen_parameters():
    frozen = {
        "partition": optax.partition(
            {"x": mtadam(), "y": optax.chain(mt.sum_terms(), optax.set_to_zero())},
            {"b": "y", "w": "x"},
        ),
        "freeze": mt.chain(mtadam(), optax.freeze({"b": True, "w": False})),
        "freeze before": mt.chain(optax.freeze({"b": True, "w": False}), mtadam()),
        "masked": mt.chain(
            mt.masked(mtadam(), by_ndim, K), optax.freeze({"b": True, "w": False})
        ),
    }
    ((expected, *found),), _ = steps(beside(mtadam(), *frozen.values()), [draw()])
    for updates in found:
        assert_zero(updates["b"])
        assert_close(updates["w"], expected["w"], rtol=1e-6)


def test_named_chain():
    stages = (
        ("balance", mt.balance_by_norm(K)),
        ("adam", mt.scale_by_max_adam(K)),
        ("rate", optax.scale_by_learning_rate(0.1)),
    )
    batches = [draw(0), draw(1)]
    both = beside(optax.named_chain(*stages), optax.chain(*(tx for _, tx in stages)))
    history, (state, _) = steps(both, batches, losses=LOSSES)
    for found, expected in history:
        assert_identical(found, expected)
    assert list(state) == ["balance", "adam", "rate"]
    assert state["balance"].norms["w"].shape == (K,)


def test_schedule_free_goes_around():
    # With one term it is schedule-free Adam, and what follows the terms is not new.
    tx = optax.contrib.schedule_free(mt.mtadam(0.1, 1, b1=0.0), 0.1, b1=0.9)
    plain = optax.contrib.schedule_free(optax.adam(0.1, b1=0.0), 0.1, b1=0.9)
    batches = [jax.tree.map(lambda g: g[:1], draw(seed)) for seed in range(3)]

    def train(tx, batches):
        @jax.jit
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            evaluated = optax.contrib.schedule_free_eval_params(state, params)
            return params, state, evaluated

        params, state = PARAMS, tx.init(PARAMS)
        for grads in batches:
            params, state, evaluated = step(params, state, grads)
        return params, evaluated

    expected = train(plain, map(total, batches))
    assert_close(train(tx, batches), expected, rtol=1e-5)
    (updates,), _ = steps(optax.contrib.schedule_free(mtadam(b1=0.0), 0.1), [draw()])
    assert_param_shapes(updates, PARAMS)


def test_lookahead_goes_around():
    tx = optax.lookahead(mtadam(), sync_period=2, slow_step_size=0.5)

    def train(tx, params):
        @jax.jit
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for seed in range(2):
            params, state = step(params, state, draw(seed))
        return jax.tree.map(np.asarray, params)

    params = train(tx, optax.LookaheadParams.init_synced(PARAMS))
    fast = train(mtadam(), PARAMS)
    halfway = jax.tree.map(lambda start, end: (start + end) / 2, PARAMS, fast)
    assert_close(params.slow, halfway, rtol=1e-5)
    assert_close(params.fast, halfway, rtol=1e-5)


def test_split_real_and_imaginary_goes_around():
    tx = optax.contrib.split_real_and_imaginary(mtadam())
    params = {"z": np.ones(3, np.complex64)}
    rng = np.random.default_rng(0)
    real, imaginary = rng.normal(size=(2, K, 3)).astype(np.float32)
    grads = {"z": (real + 1j * imaginary).astype(np.complex64)}
    (updates,), _ = steps(tx, [grads], params)
    assert updates["z"].dtype == jnp.complex64
    (expected,), _ = steps(mtadam(), [real], np.ones(3, np.float32))
    assert_close(updates["z"].real, expected, rtol=1e-6)
