"""MetaBalance against Alg. 1."""

import jax
import jax.numpy as jnp
import optax
import pytest

from multiterm_optax import metabalance, sum_terms
from tests._asserts import assert_close, assert_identical, assert_message
from tests._problems import Pulls
from tests.references import metabalance as reference

STEPS = 30
GROUPS = {
    "leaf": ("leaf", [[0], [1], [2], [3], [4]]),
    "global": ("global", [[0, 1, 2, 3, 4]]),
    "labels": (("a", "b", "a", "c", "b"), [[0, 2], [1, 4], [3]]),
}


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
    tx = metabalance(optax.sgd(1.0), len(grads), **options)
    return -tx.update(grads, tx.init(grads[0]))[0]


def test_strategies_choose_by_size(x64):
    grads = jnp.array([[1.0, 0, 0], [0, 10, 0], [0, 0, 0.1]])
    for strategy, expected in [
        ("both", [1, 1, 1]),
        ("reduce", [1, 1, 0.1]),
        ("enlarge", [1, 10, 1]),
    ]:
        found = one_step(grads, relax=1.0, strategy=strategy)
        assert_close(found, jnp.array(expected, float), rtol=1e-12)


def test_relaxed_to_nothing_it_is_the_plain_sum(x64):
    grads = jax.random.normal(jax.random.key(0), (3, 4))
    plain, _ = sum_terms().update(grads, optax.EmptyState())
    assert_close(one_step(grads, relax=0.0), plain, rtol=1e-12)


@pytest.mark.parametrize(
    ("scale", "eps"),
    [(1.0, 1e-10), (1e4, 1e-10), (1e8, 1e-10), (1e9, 1e-10), (1e15, 0.0)],
)
def test_an_auxiliary_term_is_not_lost_however_large_it_is(scale, eps):
    # Blended as g + r (balanced - g), the balanced part would be lost to rounding.
    grads = jnp.array([[0.0, 1.0], [0.3 * scale, 0.1 * scale]], jnp.float32)
    found = one_step(grads, relax=1.0, eps=eps)
    assert_close(found, jnp.array([0.9486833, 1.3162278]), rtol=2e-7)
    half = one_step(grads, relax=0.5, eps=eps)
    assert_close(half, (found + jnp.sum(grads, axis=0)) / 2, rtol=2e-7)


def test_groups_without_the_main_term_are_left_alone(x64):
    grads = {"trunk": jnp.ones((2, 3)), "head": jnp.array([[0.0], [5.0]])}
    tx = metabalance(optax.sgd(1.0), 2)
    updates, _ = tx.update(grads, tx.init(jax.tree.map(lambda g: g[0], grads)))
    assert updates["head"].tolist() == [-5.0]


def test_a_term_that_wakes_late_is_not_enlarged_with_norm_init_none(x64):
    grads = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    awake = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    for norm_init, expected in [(0.0, 1.9), (None, 1.0)]:
        tx = metabalance(optax.sgd(1.0), 2, relax=1.0, norm_init=norm_init)
        state = tx.init(grads[0])
        _, state = tx.update(grads, state)
        updates, _ = tx.update(awake, state)
        assert -float(updates[1]) == pytest.approx(expected)


def test_one_term_is_the_inner_optimizer():
    grads = jax.random.normal(jax.random.key(0), (1, 4))
    inner = optax.adam(0.1)
    expected, _ = inner.update(grads[0], inner.init(grads[0]))
    tx = metabalance(inner, 1)
    found, _ = tx.update(grads, tx.init(grads[0]))
    assert_identical(found, expected)


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
