"""MTAdam against Alg. 1 in both its forms, and what the paper says of it."""

import functools

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
from tests._problems import GROUPS, HEAD, Pulls
from tests._runs import all_steps, first_step
from tests.references import mtadam as reference

STEPS = 30
HYPER = {"b1": 0.85, "b2": 0.98, "b3": 0.8, "eps": 1e-6}
FORMS = {
    "printed": (reference.printed, {"anchor": 0, "norm_init": 1.0}),
    "authors": (reference.authors, {}),
}


@functools.cache
def descend(form, terms, grouping):
    options = {"groups": GROUPS[grouping][0], **HYPER, **FORMS[form][1]}
    problem = Pulls(terms, STEPS, seed=terms)
    return problem, problem.run(mtadam(0.02, terms, **options))


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
    problem, found = descend(form, terms, grouping)
    expected = FORMS[form][0](
        problem.start,
        problem.numpy_gradients,
        STEPS,
        GROUPS[grouping][1],
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
    # A head that the anchor does not touch learns nothing.
    np.testing.assert_array_equal(
        found[HEAD], problem.start[HEAD][None].repeat(STEPS, 0)
    )


# The guard on the comparisons above: the two forms do differ on this problem, so that
# agreement with the wrong one would be seen.
def test_the_two_forms_differ(x64):
    problem = Pulls(3, STEPS, seed=5)
    args = (problem.start, problem.numpy_gradients, STEPS, GROUPS["leaf"][1])
    printed = reference.printed(*args, alpha=0.02, terms=3, **HYPER)
    authors = reference.authors(*args, alpha=0.02, terms=3, **HYPER)
    assert (
        problem.deviation([np.stack(x) for x in zip(*printed, strict=True)], authors)
        > 1e-2
    )


def test_head_learns_by_default(x64):
    problem, found = descend("authors", 3, "labels")
    assert np.max(np.abs(found[HEAD][-1] - problem.start[HEAD])) > 0.05


def test_state_is_k_plus_one_copies_k_numbers_a_group_and_the_counts():
    params = {"a": np.zeros((5, 3), np.float32), "b": np.zeros(7, np.float32)}
    size = 22
    for terms in (1, 4):
        state = jax.eval_shape(mtadam(0.1, terms).init, params)
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
    alone, _ = first_step(mtadam(0.1, 1), grad[None])
    together, _ = first_step(mtadam(0.1, 3), np.stack([grad] * 3))
    assert_close(together, 3 * alone, rtol=1e-12)


def test_scale_of_the_losses_does_not_change_the_step(x64):
    # eps = 0 in Adam: what is left of the scale is eps alone.
    grads = np.random.default_rng(0).normal(size=(5, 3, 4))
    tx = mtadam(0.1, 3, eps=0.0)
    expected, _ = all_steps(tx, grads)
    for scale in (1e-6, 1e6):
        found, _ = all_steps(tx, scale * grads)
        assert_close([*found], [*expected], rtol=1e-12)


def test_weight_decay_enters_once_and_by_the_learning_rate(x64):
    params = {"a": np.array([2.0, -3.0]), "b": np.array([1.0])}
    grads = {"a": np.ones((3, 2)), "b": np.ones((3, 1))}
    decayed = mtadam(0.1, 3, weight_decay=0.5, mask={"a": True, "b": False})
    u, _ = first_step(mtadam(0.1, 3), grads, params)
    v, _ = first_step(decayed, grads, params)
    assert_close(v["a"], u["a"] - 0.1 * 0.5 * params["a"], rtol=1e-12)
    assert_close(v["b"], u["b"], rtol=1e-12)


def test_learning_rate_may_be_a_schedule(x64):
    grads = np.array([[[1.0], [2.0]]] * 2)
    tx = mtadam(optax.piecewise_constant_schedule(1.0, {1: 0.1}), 2)
    (first, second), _ = all_steps(tx, grads)
    assert_close(first, np.array([-2.0]), rtol=1e-7)
    assert_close(second, np.array([-0.2]), rtol=1e-7)


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
