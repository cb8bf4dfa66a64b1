"""K ready-made gradients as per-term gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_message

PARAMS = {"w": np.float32([[0.3, -1.0]]), "b": np.float32(0.5)}


def losses_fn(p):
    return {"sum": jnp.sum(p["w"] ** 2) * p["b"], "fit": jnp.sum(jnp.sin(p["w"]))}


def test_what_jacrev_gives_of_a_dict_is_what_the_library_computes():
    @jax.jit
    def compared(params):
        found = mt.stack_terms(jax.jacrev(losses_fn)(params))
        return found, mt.value_and_term_grads(losses_fn)(params)[1]

    found, expected = compared(PARAMS)
    assert_close(found, expected, rtol=1e-6)


def test_a_list_keeps_its_order_and_a_dict_is_sorted_by_name():
    one, two = {"w": np.ones(2), "n": None}, {"w": np.zeros(2), "n": None}
    np.testing.assert_array_equal(mt.stack_terms([one, two])["w"], [[1, 1], [0, 0]])
    found = mt.stack_terms({"b": one, "a": two})
    np.testing.assert_array_equal(found["w"], [[0, 0], [1, 1]])


BAD = {
    "no container": (np.ones(3), TypeError, ["list", "dict", "(3,)"]),
    "nothing": ([], ValueError, ["at least one", "none"]),
    "structures": (
        {"a": {"w": 1.0}, "b": {"v": 1.0}},
        ValueError,
        ["trees[b]", "trees[a]", "['v']"],
    ),
    "shapes": (
        [{"w": np.ones(2)}, {"w": np.ones(3)}],
        ValueError,
        ["trees[1]['w']", "(2,)", "(3,)"],
    ),
}


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    trees, kind, words = BAD[case]
    with pytest.raises(kind) as error:
        mt.stack_terms(trees)
    assert_message(error.value, "stack_terms: trees", *words)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("container", [list, tuple, lambda t: {"a": t[0], "b": t[1]}])
def test_an_optimizer_that_is_given_the_trees_says_what_to_do(container):
    tx = mt.balanced(optax.sgd(0.1), 2)
    trees = container([PARAMS, PARAMS])
    with pytest.raises(ValueError, match="structure") as error:
        tx.update(trees, tx.init(PARAMS), PARAMS)
    assert_message(error.value, "balanced: updates", "stack_terms")
