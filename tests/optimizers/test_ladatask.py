"""Layer-wise AdaTask against Eq. 8 and 9."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import ladatask_rmsprop
from tests._asserts import assert_close, assert_finite, assert_message, assert_zero
from tests._problems import GROUPS, Pulls
from tests._runs import all_steps, first_step
from tests.references import ladatask as reference

STEPS = 30
PROBLEMS = [(2, "leaf"), (3, "leaf"), (10, "leaf"), (3, "global"), (3, "labels")]
# Each sum with each place of epsilon, in one of the ways to group.
QUICK = {
    ("sum_sq", False): (3, "leaf"),
    ("sum_sq", True): (3, "labels"),
    ("grad_sum", False): (3, "global"),
    ("grad_sum", True): (3, "leaf"),
}


@pytest.mark.parametrize(
    ("total", "inside", "terms", "grouping"),
    [
        pytest.param(
            *form, *problem, marks=[] if problem == quick else pytest.mark.slow
        )
        for form, quick in QUICK.items()
        for problem in PROBLEMS
    ],
)
def test_agrees_with_equations_8_and_9(
    x64, record_deviation, terms, grouping, inside, total
):
    groups, listed = GROUPS[grouping]
    problem = Pulls(terms, STEPS, seed=terms)
    tx = ladatask_rmsprop(
        0.02,
        terms,
        decay=0.9,
        eps=1e-6,
        total=total,
        groups=groups,
        eps_in_sqrt=inside,
    )
    found = problem.run(tx)
    for h in (np.sum, np.mean):  # the choice of h cancels
        expected = reference.rmsprop(
            problem.start,
            problem.numpy_gradients,
            STEPS,
            listed,
            eta=0.02,
            gamma=0.9,
            epsilon=1e-6,
            h=h,
            total=total,
            inside=inside,
        )
        deviation = problem.deviation(found, expected)
        record_deviation(f"ladatask_rmsprop, {total}", deviation)
        assert deviation < 1e-9


def test_state_is_one_buffer_and_k_plus_one_numbers_a_group():
    params = {"a": jnp.zeros((5, 3)), "b": jnp.zeros(7, jnp.bfloat16)}
    for groups, count in [("leaf", 2), ("global", 1), ({"a": 0, "b": 0}, 1)]:
        state = jax.eval_shape(ladatask_rmsprop(0.1, 4, groups=groups).init, params)
        sizes = jax.tree.leaves(jax.tree.map(lambda x: x.size, state))
        assert sum(sizes) == 22 + (4 + 1) * count
        assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_one_term_is_rmsprop(x64):
    grads = np.random.default_rng(0).normal(size=(8, 1, 5))
    for inside in (False, True):
        ours = ladatask_rmsprop(0.1, 1, eps_in_sqrt=inside)
        other = optax.rmsprop(0.1, decay=0.99, eps=1e-8, eps_in_sqrt=inside)
        expected, _ = all_steps(other, grads[:, 0], np.zeros(5))
        assert_close(all_steps(ours, grads)[0], expected, rtol=1e-12)


def test_terms_on_leaves_of_their_own_get_adatask(x64):
    # Where one term is alone, its share is all: RMSProp on it.
    grads = {"a": np.array([[3.0], [0.0]]), "b": np.array([[0.0], [1e-3]])}
    updates, _ = first_step(ladatask_rmsprop(0.1, 2, decay=0.75, eps=0.0), grads)
    assert_close(updates, {"a": np.array([-0.2]), "b": np.array([-0.2])}, rtol=1e-12)


@pytest.mark.parametrize("total", ["sum_sq", "grad_sum"])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_zero_and_opposed_gradients_stay_finite(total, eps):
    tx = ladatask_rmsprop(0.1, 2, eps=eps, total=total)
    grads = np.float32([np.zeros((2, 3)), [[1, 0, 2], [-1, 0, 2]]])
    updates, _ = all_steps(tx, grads)
    assert_zero(updates[0])
    assert_finite(updates[1])
    assert updates[1, 0] == 0.0


def test_weight_decay_enters_once():
    params, grads = np.float32([2.0, -3.0]), np.ones((4, 2), np.float32)
    u, _ = first_step(ladatask_rmsprop(0.1, 4), grads, params)
    v, _ = first_step(ladatask_rmsprop(0.1, 4, weight_decay=0.5), grads, params)
    assert_close(v, u - 0.1 * 0.5 * params, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"decay": 1.0}, "decay"),
        ({"eps": -1.0}, "eps"),
        ({"total": "sum"}, "total"),
        ({"groups": "layer"}, "groups"),
    ],
)
def test_bad_arguments_are_named(own_errors, options, argument):
    with pytest.raises(ValueError, match=f"{argument} must be") as caught:
        ladatask_rmsprop(0.1, 2, **options)
    assert_message(caught.value, "ladatask_rmsprop", "found")
