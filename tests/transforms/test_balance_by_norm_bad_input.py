"""What balance_by_norm refuses, and what its messages name."""

import jax
import numpy as np
import optax
import pytest

from multiterm_optax import balance_by_norm, sum_terms
from tests._asserts import assert_message
from tests._runs import first_step

K = 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": 1.0}, ["decay", "[0, 1)", "1.0"]),
        ({"decay": -0.1}, ["decay", "[0, 1)", "-0.1"]),
        ({"decay": float("nan")}, ["decay", "[0, 1)", "nan"]),
        ({"eps": -1e-3}, ["eps", "[0, 1)", "-0.001"]),
        ({"eps": 1.0}, ["eps", "[0, 1)", "1.0"]),
        ({"norm_init": -1.0}, ["norm_init", "[0, inf)", "-1.0"]),
        ({"norm_init": float("inf")}, ["norm_init", "[0, inf)", "inf"]),
        ({"anchor": 3}, ["anchor", "[0, 2]", "num_terms=3", "found 3"]),
        ({"anchor": -1}, ["anchor", "[0, 2]", "found -1"]),
        ({"weights": [1.0, 2.0]}, ["weights", "(3,)", "num_terms=3", "(2,)"]),
        ({"weights": 1.0}, ["weights", "(3,)", "()"]),
        ({"weights": [1.0, -2.0, 1.0]}, ["weights", "[0, inf)", "-2.0"]),
        ({"weights": [1.0, float("nan"), 1.0]}, ["weights", "[0, inf)", "nan"]),
        ({"groups": "layer"}, ["groups", "'leaf', 'global'", "'layer'"]),
    ],
)
def test_bad_hyperparameter_is_named(own_errors, options, words):
    with pytest.raises(ValueError, match="balance_by_norm") as caught:
        balance_by_norm(K, **options)
    assert_message(caught.value, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": "fast"}, ["decay", "a number", "'fast'"]),
        ({"decay": None}, ["decay", "a number", "None"]),
        ({"decay": [0.9, 0.9]}, ["decay", "a number", "[0.9, 0.9]"]),
        ({"anchor": 1.5}, ["anchor", "index of a term", "1.5"]),
    ],
)
def test_hyperparameter_of_a_wrong_type_is_named(own_errors, options, words):
    with pytest.raises(TypeError, match="balance_by_norm") as caught:
        balance_by_norm(K, **options)
    assert_message(caught.value, *words)


def test_labels_that_do_not_fit_the_tree_are_refused():
    tx = balance_by_norm(K, groups={"a": "x", "d": "y"})
    with pytest.raises(ValueError, match="groups must be a tree of labels"):
        jax.eval_shape(tx.init, {"a": np.ones(2), "c": np.ones(3)})


@pytest.mark.parametrize(
    ("updates", "params", "error", "words"),
    [
        (
            np.ones(()),
            None,
            ValueError,
            ["updates", "(3, *parameter shape)", "missing"],
        ),
        (np.ones((2, 4)), None, ValueError, ["updates", "num_terms=3", "(2, 4)"]),
        (np.ones((3, 4)), np.ones((3, 4)), ValueError, ["(3, 3, 4)", "missing"]),
        (np.ones((3, 5)), np.ones(4), ValueError, ["(3, 4)", "(3, 5)"]),
        ({"a": np.ones(3)}, {"b": np.ones(())}, ValueError, ["updates", "structure"]),
        (
            np.ones((3, 4), np.int32),
            None,
            TypeError,
            ["updates", "floating", "int32"],
        ),
    ],
)
def test_bad_updates_are_named(updates, params, error, words):
    tx = balance_by_norm(K)
    like = jax.tree.map(lambda u: u[0] if u.ndim else u, updates)
    state = jax.eval_shape(tx.init, like)
    with pytest.raises(error, match="balance_by_norm") as caught:
        jax.eval_shape(tx.update, updates, state, params)
    assert_message(caught.value, *words)


def test_chain_with_two_aggregators_says_so():
    tx = optax.chain(sum_terms(), balance_by_norm(K))
    params = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="only one aggregator"):
        first_step(tx, np.stack([params] * K), params)
