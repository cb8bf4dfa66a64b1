"""MTAdam against Alg. 1 in both its forms, and what the paper says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    balance_by_norm,
    mtadam,
    scale_by_max_adam,
)
from tests._asserts import assert_close, assert_message, named_leaves
from tests._problems import HEAD, Pulls
from tests.references import mtadam as reference

STEPS = 30
HYPER = {"b1": 0.85, "b2": 0.98, "b3": 0.8, "eps": 1e-6}
GROUPS = {
    "leaf": ("leaf", [[0], [1], [2], [3], [4]]),
    "global": ("global", [[0, 1, 2, 3, 4]]),
    "labels": (("a", "b", "a", "c", "b"), [[0, 2], [1, 4], [3]]),
}
FORMS = {
    "printed": (reference.printed, {"anchor": 0, "norm_init": 1.0}),
    "authors": (reference.authors, {}),
}


@pytest.mark.parametrize(
    ("form", "terms", "grouping"),
    [("printed", 3, "leaf"), ("authors", 3, "labels")]
    + [
        pytest.param(form, *problem, marks=pytest.mark.slow)
        for form, problems in {
            "printed": [(2, "leaf"), (10, "leaf"), (3, "global"), (3, "labels")],
            "authors": [(2, "leaf"), (3, "leaf"), (10, "leaf"), (3, "global")],
        }.items()
        for problem in problems
    ],
)
def test_agrees_with_algorithm_1(x64, record_deviation, form, terms, grouping):
    transcription, options = FORMS[form]
    groups, listed = GROUPS[grouping]
    problem = Pulls(terms, STEPS, seed=terms)
    found = problem.run(mtadam(0.02, terms, groups=groups, **HYPER, **options))
    expected = transcription(
        problem.start,
        problem.numpy_gradients,
        STEPS,
        listed,
        alpha=0.02,
        terms=terms,
        **HYPER,
    )
    deviation = problem.deviation(found, expected)
    record_deviation(f"mtadam, {form} form, {grouping}", deviation)
    assert deviation < 1e-9


@pytest.mark.parametrize(
    ("scaling", "form"),
    [("max", "authors"), ("mean", "authors"), ("own", "printed")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [("max", "printed"), ("mean", "printed"), ("own", "authors")]
    ],
)
def test_stages_agree_with_the_ablations_and_weights(
    x64, record_deviation, form, scaling
):
    transcription, options = FORMS[form]
    problem = Pulls(3, STEPS, seed=7)
    weights = np.array([1.0, 5.0, 0.25])
    b3, adam = HYPER["b3"], {k: HYPER[k] for k in ("b1", "b2", "eps")}
    optimizer = optax.chain(
        balance_by_norm(3, b3, weights=weights, **options),
        scale_by_max_adam(3, reduction=scaling, **adam),
        optax.scale_by_learning_rate(0.02),
    )
    expected = transcription(
        problem.start,
        problem.numpy_gradients,
        STEPS,
        GROUPS["leaf"][1],
        alpha=0.02,
        terms=3,
        scaling=scaling,
        weights=weights,
        **HYPER,
    )
    deviation = problem.deviation(problem.run(optimizer), expected)
    record_deviation(f"mtadam, {form} form, {scaling}, weights", deviation)
    assert deviation < 1e-9


def test_fixed_anchor_agrees_with_the_authors_form(x64, record_deviation):
    problem = Pulls(3, STEPS, seed=11)
    found = problem.run(mtadam(0.02, 3, anchor=1, **HYPER))
    expected = reference.authors(
        problem.start,
        problem.numpy_gradients,
        STEPS,
        GROUPS["leaf"][1],
        alpha=0.02,
        terms=3,
        anchor=1,
        **HYPER,
    )
    deviation = problem.deviation(found, expected)
    record_deviation("mtadam, authors form, anchor 1", deviation)
    assert deviation < 1e-9


# The guard on the comparisons above: the two forms do differ on this problem, so that
# agreement with the wrong one would be seen.
def test_the_two_forms_differ(x64):
    problem = Pulls(3, STEPS, seed=3)
    args = (problem.start, problem.numpy_gradients, STEPS, GROUPS["leaf"][1])
    printed = reference.printed(*args, alpha=0.02, terms=3, **HYPER)
    authors = reference.authors(*args, alpha=0.02, terms=3, **HYPER)
    assert (
        problem.deviation([np.stack(x) for x in zip(*printed, strict=True)], authors)
        > 1e-2
    )


def test_head_learns_by_default_and_not_with_a_fixed_anchor(x64):
    problem = Pulls(3, STEPS, seed=5)
    moved = {
        anchor: np.abs(
            np.asarray(problem.run(mtadam(0.01, 3, anchor=anchor))[HEAD][-1])
            - problem.start[HEAD]
        ).max()
        for anchor in (None, 0)
    }
    assert moved[None] > 0.05
    assert moved[0] == 0


def test_state_is_k_plus_one_copies_k_numbers_a_group_and_the_counts():
    params = {"a": jnp.zeros((5, 3)), "b": jnp.zeros(7)}
    size = 22
    for terms in (1, 4):
        state = mtadam(0.1, terms).init(params)
        count = sum(leaf.size for leaf in jax.tree.leaves(state))
        assert count == (terms + 1) * size + terms * 2 + terms + 1
        ints = [
            x
            for _, x in named_leaves(state)
            if not jnp.issubdtype(x.dtype, jnp.floating)
        ]
        assert [x.shape for x in ints] == [(), (terms,)]


def test_k_equal_terms_step_k_times_as_far(x64):
    grad = np.array([0.5, -2.0])
    one, three = mtadam(0.1, 1), mtadam(0.1, 3)
    alone, _ = jax.jit(one.update)(grad[None], one.init(grad), grad)
    equal = np.stack([grad] * 3)
    together, _ = jax.jit(three.update)(equal, three.init(grad), grad)
    assert_close(together, 3 * np.asarray(alone), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_losses_does_not_change_the_step(x64, scale):
    # eps = 0 in Adam: what is left of the scale is eps alone.
    grads = np.random.default_rng(0).normal(size=(5, 3, 4))
    tx = mtadam(0.1, 3, eps=0.0)
    update = jax.jit(tx.update)
    one, other = tx.init(jnp.zeros(4)), tx.init(jnp.zeros(4))
    for grad in grads:
        u, one = update(grad, one)
        v, other = update(scale * grad, other)
        assert_close(v, u, rtol=1e-12)


def test_weight_decay_enters_once_and_by_the_learning_rate(x64):
    params = {"a": jnp.array([2.0, -3.0]), "b": jnp.array([1.0])}
    grads = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 1))}
    plain = mtadam(0.1, 3)
    decayed = mtadam(0.1, 3, weight_decay=0.5, mask={"a": True, "b": False})
    u, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    v, _ = jax.jit(decayed.update)(grads, decayed.init(params), params)
    assert_close(v["a"], u["a"] - 0.1 * 0.5 * params["a"], rtol=1e-12)
    assert_close(v["b"], u["b"], rtol=1e-12)


def test_learning_rate_may_be_a_schedule(x64):
    grads = jnp.array([[1.0], [2.0]])
    tx = mtadam(optax.piecewise_constant_schedule(1.0, {1: 0.1}), 2)
    state, params, update = tx.init(jnp.zeros(1)), jnp.zeros(1), jax.jit(tx.update)
    first, state = update(grads, state, params)
    second, state = update(grads, state, params)
    assert_close(first, jnp.array([-2.0]), rtol=1e-7)
    assert_close(second, jnp.array([-0.2]), rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "argument", "expected"),
    [
        ({"b1": 1.0}, "b1", "[0, 1)"),
        ({"b2": -0.1}, "b2", "[0, 1)"),
        ({"b3": 1.5}, "b3", "[0, 1)"),
        ({"eps": -1e-8}, "eps", "[0, inf)"),
        ({"eps_root": -1e-8}, "eps_root", "[0, inf)"),
        ({"anchor": 3}, "anchor", "[0, 2]"),
        ({"norm_init": -1.0}, "norm_init", "[0, inf)"),
        ({"weights": [1.0, 2.0]}, "weights", "(3,)"),
        ({"groups": "layers"}, "groups", "'leaf'"),
    ],
)
def test_bad_hyperparameter_is_named(own_errors, options, argument, expected):
    with pytest.raises(ValueError, match="must") as caught:
        mtadam(0.1, 3, **options)
    assert_message(caught.value, argument, expected, "found")


@pytest.mark.parametrize("count", [0, -1, True, 2.5, "3", None])
def test_bad_num_terms_is_named(own_errors, count):
    with pytest.raises((TypeError, ValueError), match="num_terms must be") as caught:
        mtadam(0.1, count)
    assert_message(caught.value, "found", repr(count))


def test_traced_num_terms_names_the_way_out(own_errors):
    tx = optax.inject_hyperparams(mtadam)(0.1, num_terms=2)
    state, grads = tx.init(jnp.zeros(2)), jnp.ones((2, 2))
    with pytest.raises(TypeError, match="num_terms must be") as caught:
        jax.jit(tx.update)(grads, state)
    assert_message(caught.value, "traced", "static_args=('num_terms',)")


def test_gradients_without_the_term_axis_are_refused():
    params = {"w": jnp.zeros((2, 4))}
    tx = mtadam(0.1, 3)
    state = tx.init(params)
    with pytest.raises(ValueError, match="term axis is missing") as caught:
        tx.update({"w": jnp.ones((2, 4))}, state, params)
    assert_message(caught.value, "updates['w']", "(3, 2, 4)", "(2, 4)")
    with pytest.raises(ValueError, match="num_terms=3") as caught:
        tx.update({"w": jnp.ones((5, 2, 4))}, state, params)
    assert_message(caught.value, "updates['w']", "(3, 2, 4)", "(5, 2, 4)")
