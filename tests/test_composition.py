"""What every Optax wrapper does with per-term gradients, as docs/composition.md says.

There are three places: after the aggregator, where updates are [*p] and Optax is at
home; before it, on [K, *p]; and around a whole K -> 1 optimizer.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import multiterm_optax as mt
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_param_shapes,
    assert_same_signature,
    assert_zero,
    named_leaves,
)
from tests._runs import all_steps, first_step

K = 2
# Data are NumPy's: each operation on JAX arrays outside jit is a program of its own.
PARAMS = {"b": np.ones(2, np.float32), "w": np.ones((3, 2), np.float32)}
MATRICES = {"b": False, "w": True}
LOSSES = np.array([1.0, 2.0], np.float32)


def by_ndim(params):
    return jax.tree.map(lambda p: p.ndim == 2, params)


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(size=(K, *p.shape)).astype(np.float32), PARAMS
    )


def total(grads):
    """The sum of the terms, by NumPy."""
    return jax.tree.map(lambda g: np.asarray(g).sum(axis=0), grads)


def mtadam(**options):
    return mt.mtadam(0.1, K, **options)


def steps(tx, batches, params=PARAMS, **extra_args):
    """Updates of every step, in NumPy, and the last state."""
    if len(batches) == 1:
        updates, state = first_step(tx, batches[0], params, **extra_args)
        return [updates], state
    number = len(batches)
    extra = jax.tree.map(lambda x: np.stack([x] * number), extra_args)
    grads = jax.tree.map(lambda *g: np.stack(g), *batches)
    updates, states = all_steps(tx, grads, params, **extra)
    history = [jax.tree.map(lambda u, i=i: u[i], updates) for i in range(number)]
    return history, jax.tree.map(lambda s: s[-1], states)


def beside(*each):
    """Transformations of the same gradients as one, so that they are one program."""

    def update(updates, state, params=None, **extra_args):
        pairs = zip(each, state, strict=True)
        found = [tx.update(updates, s, params, **extra_args) for tx, s in pairs]
        return tuple(u for u, _ in found), tuple(s for _, s in found)

    each = [optax.with_extra_args_support(tx) for tx in each]
    return optax.GradientTransformationExtraArgs(
        lambda params: tuple(tx.init(params) for tx in each), update
    )


# After the aggregator: an ordinary transformation sees an ordinary gradient.

AFTER = {
    "adam": lambda: optax.adam(0.1),
    "MultiSteps": lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.trace(0.9), 2),
    "conditionally_transform": lambda: optax.conditionally_transform(
        optax.trace(0.9), lambda step: step % 2 == 0
    ),
    "conditionally_mask": lambda: optax.conditionally_mask(
        optax.trace(0.9), lambda step: step % 2 == 0
    ),
    "flatten": lambda: optax.flatten(optax.trace(0.9)),
    "masked": lambda: optax.masked(optax.trace(0.9), by_ndim),
    "selective_transform": lambda: optax.selective_transform(
        optax.trace(0.9), freeze_mask=MATRICES
    ),
    "freeze": lambda: optax.freeze(MATRICES),
    "partition": lambda: optax.partition(
        {"x": optax.trace(0.9), "y": optax.set_to_zero()}, {"b": "y", "w": "x"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(0.1),
    "schedule": lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 2)),
    "ema": lambda: optax.ema(0.9),
    "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
    "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.1),
    "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.1),
    "keep_params_nonnegative": lambda: optax.keep_params_nonnegative(),
    "snapshot": lambda: optax.snapshot("norm", optax.tree.norm),
    "monitor": lambda: optax.monitor({"norm": optax.tree.norm}),
    "clip": lambda: optax.clip(0.1),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "split_real_and_imaginary": lambda: optax.contrib.split_real_and_imaginary(
        optax.trace(0.9)
    ),
    "reduce_on_plateau": lambda: optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=0)
    ),
    "polyak_sgd": lambda: optax.polyak_sgd(),
}


# Of each kind one by default: these do to a gradient what others of them do, or less.
MORE_OF_A_KIND = {
    *("conditionally_mask", "selective_transform", "freeze", "schedule", "ema", "clip"),
    *("add_decayed_weights", "adaptive_grad_clip", "keep_params_nonnegative"),
    *("snapshot", "split_real_and_imaginary"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in MORE_OF_A_KIND else ())
        for name in AFTER
    ],
)
def test_after_the_aggregator_optax_is_at_home(name):
    stage = AFTER[name]()
    # What monitor measures enters its state in the first step.
    batches = [draw(0), draw(1)] if name != "monitor" else [draw(0)]
    # The same stage on the sum, by Optax alone.
    summed = optax.stateless(lambda grads, _: jax.tree.map(lambda g: g.sum(0), grads))
    plain = optax.chain(summed, stage)
    both = beside(mt.chain(mt.sum_terms(), stage), plain)
    history, (state, expected_state) = steps(both, batches, losses=LOSSES, value=3.0)
    for found, expected in history:
        assert_param_shapes(found, PARAMS)
        assert_close(found, expected, rtol=1e-4)
    assert_same_signature(state[1], expected_state[1])


# Around a whole optimizer: what fails, how, and what to use instead. For a wrapper that
# fails loudly the kind of error, for a silent one the shapes that leave it.

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


# Before the aggregator.


def test_clipping_before_is_joint_in_per_term_alone_and_after_of_the_sum():
    grads = draw()
    rows = np.concatenate(
        [np.asarray(g, np.float64).reshape(K, -1) for g in jax.tree.leaves(grads)], 1
    )
    norms = np.linalg.norm(rows, axis=1)
    bound = 0.5 * norms.min()
    clip = optax.clip_by_global_norm(bound)
    factors = {
        "before": np.full(K, bound / np.sqrt((norms**2).sum())),
        "per_term": bound / norms,
        "after": np.full(K, bound / np.linalg.norm(rows.sum(axis=0))),
    }
    chains = {
        "before": mt.chain(clip, mt.sum_terms()),
        "per_term": mt.chain(mt.per_term(clip, K), mt.sum_terms()),
        "after": mt.chain(mt.sum_terms(), clip),
    }
    (found,), _ = steps(beside(*chains.values()), [grads])
    for place, updates in zip(chains, found, strict=True):
        expected = jax.tree.map(
            lambda g, f=factors[place]: np.tensordot(f, np.asarray(g, np.float64), 1),
            grads,
        )
        assert_close(updates, expected, rtol=1e-5)


def test_weight_decay_before_counts_k_times():
    decay = optax.add_decayed_weights(0.25)
    both = mt.chain(decay, mt.sum_terms()), mt.chain(mt.sum_terms(), decay)
    ((before, after),), _ = steps(beside(*both), [draw()])
    summed = total(draw())
    for updates, times in ((before, K), (after, 1)):
        expected = jax.tree.map(lambda g, t=times: g + t * 0.25, summed)
        assert_close(updates, expected, rtol=1e-5)


def test_ordinary_stages_before_the_aggregator_need_per_term():
    # Elementwise stages without a state are the same before; others get one a term.
    schedule = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 4))
    batches = [draw(0), draw(1)]
    both = mt.chain(schedule, mt.sum_terms()), mt.chain(mt.sum_terms(), schedule)
    for before, after in steps(beside(*both), batches)[0]:
        assert_close(before, after, rtol=1e-6)
    stages = (
        optax.scale_by_adam(),
        optax.flatten(optax.scale_by_adam()),
        optax.masked(optax.scale_by_adam(), by_ndim),
        optax.adaptive_grad_clip(0.1),
    )
    found, _ = first_step(beside(*(mt.adatask(tx, K) for tx in stages)), draw(), PARAMS)
    terms = [jax.tree.map(lambda g, i=i: g[i], draw()) for i in range(K)]
    alone = [first_step(beside(*stages), term, PARAMS)[0] for term in terms]
    assert_close(found, jax.tree.map(np.add, *alone), 1e-5)


def test_measurements_between_the_stages():
    tx = optax.chain(
        optax.monitor({"raw": mt.metrics.norms}),
        mt.balance_by_norm(K),
        optax.monitor({"balanced": mt.metrics.norms}),
        mt.sum_terms(),
    )
    _, state = steps(tx, [draw()])
    rows = [g.reshape(K, -1) for g in jax.tree.leaves(draw())]
    norms = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
    np.testing.assert_allclose(optax.tree.get(state, "raw"), norms, rtol=1e-5)
    balanced = np.asarray(optax.tree.get(state, "balanced"))
    np.testing.assert_allclose(balanced[1], balanced[0], rtol=1e-5)
    # A snapshot measures the parameters at init, which have no term axis.
    with pytest.raises(ValueError, match=r"metrics\.norms"):
        optax.snapshot("raw", mt.metrics.norms).init(PARAMS)


def test_a_k_to_k_stage_can_be_kept_to_some_leaves():
    balance = mt.balance_by_norm(K)
    stages = (
        balance,
        optax.masked(balance, MATRICES),
        optax.partition({"x": balance, "y": optax.identity()}, {"b": "y", "w": "x"}),
    )
    chains = beside(*(mt.chain(stage, mt.sum_terms()) for stage in stages))
    ((alone, *found),), _ = steps(chains, [draw()])
    for updates in found:
        assert_close(updates["b"], total(draw())["b"], rtol=1e-6)
        assert_close(updates["w"], alone["w"], rtol=1e-6)
    with pytest.raises(ValueError, match="state must be as init"):
        steps(optax.masked(balance, by_ndim), [draw()])


# Hyperparameters, schedules, and reading or changing a state.

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


# Optax's own aggregators along axis 0.


def test_process_takes_our_stages():
    batches = [draw(0), draw(1)]
    stages = (mt.reweight(mt.softadapt(), K), mt.sum_terms(), optax.adam(0.1))
    both = beside(aggregating.process(*stages), optax.chain(*stages))
    for found, expected in steps(both, batches, losses=LOSSES)[0]:
        assert_close(found, expected, rtol=1e-6)
    bare = aggregating.process(*stages[:2], optax.trace(0.9))
    with pytest.raises(TypeError, match="unexpected keyword argument 'losses'"):
        steps(bare, batches, losses=LOSSES)


def test_process_waits_for_a_weighting_that_is_not_ready():
    aggregator = mt.weighted(mt.inexact_mgda(1e6), optax.identity(), K)
    tx = aggregating.process(optax.identity(), aggregator, optax.adam(0.1))
    (updates,), (_, _, adam) = steps(tx, [draw()])
    assert_zero(updates)
    assert int(optax.tree.get(adam, "count")) == 0


def test_sam_stands_after_the_aggregator_without_extra_arguments():
    sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05))
    batches = [draw(0), draw(1)]
    found, _ = steps(mt.chain(mt.sum_terms(), sam), batches)
    expected, _ = steps(sam, [total(grads) for grads in batches])
    assert_close(found, expected, rtol=1e-6)
    with pytest.raises(TypeError, match="unexpected keyword argument 'losses'"):
        steps(mt.chain(mt.sum_terms(), sam), batches, losses=LOSSES)


def test_optax_aggregators_stand_in_a_chain():
    mean = aggregating.average_per_element_updates()
    (updates,), _ = steps(mt.chain(mean, optax.sgd(1.0)), [draw()])
    assert_close(updates, jax.tree.map(lambda t: -t / K, total(draw())), rtol=1e-6)
    # It declares to take extra arguments and takes none.
    with pytest.raises(TypeError, match="unexpected keyword argument 'losses'"):
        steps(mt.chain(mean), [draw()], losses=LOSSES)

    rows = [np.asarray(g).reshape(K, -1) for g in jax.tree.leaves(draw())]
    norms = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
    bound = norms.mean()  # clips one of the two
    private = optax.contrib.differentially_private_aggregate(bound, 0.0, 0)
    (updates,), _ = steps(mt.chain(private), [draw()])
    clipped = jax.tree.map(
        lambda g: np.tensordot(np.minimum(1, bound / norms), np.asarray(g), 1) / K,
        draw(),
    )
    assert_close(updates, clipped, rtol=1e-5)

    # Accumulating before the aggregator changes its state's shape: refused.
    early = mt.chain(aggregating.accumulate_avg_updates(2), mt.sum_terms())
    with pytest.raises(ValueError, match="initialised for updates without the term"):
        steps(early, [draw()])


# Our wrappers around one another.


def test_a_bad_microbatch_is_left_out_of_the_mean():
    batches = [draw(0), draw(1)]
    batches[0]["w"][1] = np.nan
    inner = mt.adatask(optax.sgd(1.0), K)
    outside = mt.apply_if_finite(mt.multi_steps(inner, K, 2), K, 3)
    # The other way round the mean over the microbatches is spoilt, and the term lost.
    inside = mt.multi_steps(mt.apply_if_finite(inner, K, 3), K, 2)
    ((first, _), (second, lost)), _ = steps(beside(outside, inside), batches)
    assert_zero(first)
    expected = jax.tree.map(
        lambda x, y: -((x[0] + y[0]) / 2 + y[1]), batches[0], batches[1]
    )
    assert_close(second, expected, rtol=1e-5)
    expected = jax.tree.map(lambda x, y: -(x[0] + y[0]) / 2, batches[0], batches[1])
    assert_close(lost, expected, rtol=1e-5)
    assert_finite(lost)


def test_the_pages_examples_run():
    """As one program: outside jit each of its operations would be one."""
    page = Path(__file__).resolve().parent.parent / "docs" / "composition.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    names = {}

    @jax.jit
    def read():
        for block in blocks:
            exec(compile(block, "composition.md", "exec"), names)
        return optax.tree.get(names["state"], "gradient_step")

    assert int(read()) == 1
    assert "belongs before it" in names["message"]
