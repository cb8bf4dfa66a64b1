"""What every Optax wrapper does with per-term gradients, as docs/composition.md says.

There are three places: after the aggregator, where updates are [*p] and Optax is at
home; before it, on [K, *p]; and around a whole K -> 1 optimizer.
"""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import multiterm_optax as mt
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_param_shapes,
    assert_same_signature,
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
    steps,
    total,
)
from tests._runs import first_step

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
