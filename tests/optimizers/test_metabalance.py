"""MetaBalance against Alg. 1."""

import functools

import numpy as np
import optax
import pytest

from multiterm_optax import metabalance
from tests._asserts import assert_close, assert_identical, assert_message
from tests._problems import GROUPS, Pulls
from tests._runs import all_steps, first_step
from tests.references import metabalance as reference

STEPS = 30
PROBLEMS = [
    (2, "leaf", 0),
    (3, "leaf", 1),
    (10, "leaf", 0),
    (3, "global", 0),
    (3, "labels", 2),
]
# Each strategy once, and each way to group.
QUICK = {
    (3, "leaf", 1): "both",
    (3, "global", 0): "enlarge",
    (3, "labels", 2): "reduce",
}


@pytest.mark.parametrize(
    ("strategy", "terms", "grouping", "main"),
    [
        pytest.param(
            strategy,
            *problem,
            marks=[] if QUICK.get(problem) == strategy else pytest.mark.slow,
        )
        for strategy in ("both", "reduce", "enlarge")
        for problem in PROBLEMS
    ],
)
def test_agrees_with_algorithm_1(
    x64, record_deviation, strategy, terms, grouping, main
):
    groups, listed = GROUPS[grouping]
    problem = Pulls(terms, STEPS, seed=terms)
    tx = metabalance(
        optax.sgd(1e-3),
        terms,
        relax=0.6,
        decay=0.8,
        anchor=main,
        strategy=strategy,
        groups=groups,
        eps=0.0,
    )
    expected = reference.descend(
        problem.start,
        problem.numpy_gradients,
        STEPS,
        listed,
        eta=1e-3,
        r=0.6,
        beta=0.8,
        main=main,
        strategy=strategy,
    )
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation(f"metabalance, {strategy}", deviation)
    assert deviation < 1e-9


def one_step(grads, **options):
    return -first_step(metabalance(optax.sgd(1.0), len(grads), **options), grads)[0]


def test_strategies_choose_by_size(x64):
    grads = np.diag([1.0, 10, 0.1])
    for strategy, expected in [
        ("both", [1, 1, 1]),
        ("reduce", [1, 1, 0.1]),
        ("enlarge", [1, 10, 1]),
    ]:
        found = one_step(grads, relax=1.0, strategy=strategy)
        assert_close(found, np.array(expected, float), rtol=1e-12)


def test_relaxed_to_nothing_it_is_the_plain_sum(x64):
    grads = np.random.default_rng(0).normal(size=(3, 4))
    assert_close(one_step(grads, relax=0.0), grads.sum(axis=0), rtol=1e-12)


@functools.cache
def large(relax, eps):
    """One program for all scales."""
    tx = metabalance(optax.sgd(1.0), 2, relax=relax, eps=eps)
    return lambda grads: -first_step(tx, grads)[0]


@pytest.mark.parametrize(
    ("scale", "eps"),
    [(1.0, 1e-10), (1e4, 1e-10), (1e8, 1e-10), (1e9, 1e-10), (1e15, 0.0)],
)
def test_an_auxiliary_term_is_not_lost_however_large_it_is(scale, eps):
    # Blended as g + r (balanced - g), the balanced part would be lost to rounding.
    grads = np.float32([[0.0, 1.0], [0.3 * scale, 0.1 * scale]])
    found = large(1.0, eps)(grads)
    assert_close(found, np.float32([0.9486833, 1.3162278]), rtol=2e-7)
    half = large(0.5, eps)(grads)
    assert_close(half, (found + grads.sum(axis=0)) / 2, rtol=2e-7)


def test_groups_without_the_main_term_are_left_alone(x64):
    grads = {"trunk": np.ones((2, 3)), "head": np.array([[0.0], [5.0]])}
    updates, _ = first_step(metabalance(optax.sgd(1.0), 2), grads)
    assert updates["head"].tolist() == [-5.0]


def test_a_term_that_wakes_late_is_not_enlarged_with_norm_init_none(x64):
    grads = np.array([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    for norm_init, expected in [(0.0, 1.9), (None, 1.0)]:
        tx = metabalance(optax.sgd(1.0), 2, relax=1.0, norm_init=norm_init)
        updates, _ = all_steps(tx, grads)
        assert -updates[1, 1] == pytest.approx(expected)


def test_one_term_is_the_inner_optimizer():
    grads = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    expected, _ = first_step(optax.adam(0.1), grads[0], grads[0])
    assert_identical(first_step(metabalance(optax.adam(0.1), 1), grads)[0], expected)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"relax": 1.5}, "relax"),
        ({"decay": 1.0}, "decay"),
        ({"anchor": 2}, "anchor"),
        ({"strategy": "C"}, "strategy"),
        ({"groups": "layer"}, "groups"),
    ],
)
def test_bad_arguments_are_named(own_errors, options, argument):
    with pytest.raises(ValueError, match=f"{argument} must be") as caught:
        metabalance(optax.sgd(0.1), 2, **options)
    assert_message(caught.value, "metabalance", "found")
    with pytest.raises(TypeError, match="inner must be"):
        metabalance(0.1, 2)
