"""PCGrad against Alg. 1 on the gradients themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import pcgrad, per_term, reweight, sum_terms
from tests._asserts import assert_close, assert_finite, assert_message
from tests._methods import Method
from tests._problems import Pulls, sizes
from tests.references import adatask, flat
from tests.references.pcgrad import surgery
from tests.weightings import _groups

METHODS = {"pcgrad": Method(pcgrad, invariant=True, digits=1e-6)}

STEPS = 30
KEY = 7


@functools.cache
def documented_orders(terms, steps=STEPS):
    """The random orders, by the recipe of the docstring."""

    def one_step(key, _):
        key, draw = jax.random.split(key)
        table = jnp.tile(jnp.arange(terms), (terms, 1))
        return key, jax.random.permutation(draw, table, axis=1, independent=True)

    scan = jax.jit(lambda key: jax.lax.scan(one_step, key, None, length=steps)[1])
    return np.asarray(scan(jax.random.key(KEY)))


@jax.jit
def _mixing(gramian):
    weighting = pcgrad(jax.random.key(KEY))
    return weighting.update(gramian, weighting.init(len(gramian)))[0]


def mixing(rows):
    """One program serves gradients of all lengths."""
    return np.asarray(_mixing(rows @ rows.T))


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_agrees_with_algorithm_1(x64, record_deviation, terms):
    problem, orders = Pulls(terms, STEPS, seed=terms), documented_orders(terms)
    tx = optax.chain(
        reweight(pcgrad(jax.random.key(KEY)), terms), sum_terms(), optax.sgd(1e-3)
    )
    operated = flat.mixed(
        problem.numpy_gradients, lambda t, J: surgery(J, orders[t - 1])
    )
    expected = flat.descend(problem.start, operated, STEPS, eta=1e-3)
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation("pcgrad", deviation)
    assert deviation < 1e-9


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_in_front_of_adatask(x64, record_deviation, terms):
    problem, orders = Pulls(terms, STEPS, seed=terms), documented_orders(terms)
    tx = optax.chain(
        reweight(pcgrad(jax.random.key(KEY)), terms),
        per_term(optax.scale_by_rms(decay=0.9, eps=1e-6, eps_in_sqrt=False), terms),
        sum_terms(),
        optax.scale_by_learning_rate(0.02),
    )
    operated = flat.mixed(
        problem.numpy_gradients, lambda t, J: surgery(J, orders[t - 1])
    )
    expected = adatask.rmsprop(
        problem.start,
        operated,
        STEPS,
        terms,
        eta=0.02,
        gamma=0.9,
        epsilon=1e-6,
        inside=False,
    )
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation("pcgrad + adatask rmsprop", deviation)
    assert deviation < 1e-9


@pytest.mark.parametrize("groups", _groups.SOME)
def test_groups_are_operated_on_alone(x64, groups):
    orders = documented_orders(_groups.TERMS, _groups.STEPS)
    found = _groups.run(pcgrad(jax.random.key(KEY)), groups)
    expected = _groups.expected(lambda t, J: surgery(J, orders[t]), groups)
    assert_close(found, expected, rtol=1e-11)


def test_two_terms_give_up_the_others_direction(x64):
    # A gradient of zero has no part in it, and there is a program for three.
    rows = np.array([[3.0, 0.0], [-1.0, 1.0], [0.0, 0.0]])
    new = mixing(rows) @ rows
    assert_close(new, np.array([[1.5, 1.5], [0.0, 1.0], [0.0, 0.0]]), rtol=1e-12)
    agreeing = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert mixing(agreeing).tolist() == np.eye(3).tolist()


@pytest.mark.parametrize("terms", sizes(3, slow=(1, 2, 5, 64)))
@pytest.mark.parametrize("scale", [1e-15, 1e-10, 1.0, 1e5, 1e10, 1e15])
def test_scale_changes_nothing(terms, scale):
    rows = np.random.default_rng(0).normal(size=(terms, 70)).astype(np.float32)
    rows = rows / np.sqrt(70, dtype=np.float32)
    power = np.float32(2.0 ** np.round(np.log2(scale)))
    assert_close(mixing(power * rows), mixing(rows), rtol=0)


def test_first_visited_conflict_is_gone(x64):
    # Row i is orthogonal to the last conflicting gradient it was projected off.
    rows = np.random.default_rng(1).normal(size=(3, 20))
    orders = documented_orders(3)[0]
    new = mixing(rows) @ rows
    last = [[j for j in orders[i] if j != i][-1] for i in range(3)]
    for i, j in enumerate(last):
        assert new[i] @ rows[j] >= -1e-12


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 2)),
        np.array([[0.0, 0], [1, 1], [-1, 0]]),
        np.array([[1.0, 1], [-1, -1], [1, 1]]),
        np.ones((3, 1)),
        1e-30 * np.array([[1.0, 2], [-1, 0], [0, 0]]),
    ],
)
def test_degenerate_gradients_stay_finite(rows):
    found = mixing(rows.astype(np.float32))
    assert_finite(found)
    assert np.all(np.diag(found) == 1)


def test_opposed_gradients_vanish():
    rows = np.array([[1.0, 2], [-2, -4], [0, 0]], np.float32)
    assert_close(mixing(rows) @ rows, np.zeros((3, 2)), rtol=0, atol=1e-6)


def test_orders_differ_from_step_to_step_and_from_term_to_term():
    orders = documented_orders(3)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0][0], orders[0][1])


def test_typed_and_raw_keys_draw_the_same():
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    one, other = pcgrad(jax.random.key(3)), pcgrad(jax.random.PRNGKey(3))
    update = jax.jit(lambda state: one.update(rows @ rows.T, state))
    a, state = update(one.init(5))
    b, _ = update(other.init(5))  # the same state, whichever made it
    assert np.array_equal(a, b)
    again, _ = update(state)
    assert not np.array_equal(a, again)


def test_other_implementations_of_keys():
    weighting = pcgrad(jax.random.key(0, impl="rbg"))
    _, state = jax.eval_shape(weighting.update, np.eye(3), weighting.init(3))
    assert state.key.shape == (4,)


@pytest.mark.parametrize("key", [0, None, jnp.zeros(2), jnp.zeros((2, 2), jnp.uint32)])
def test_bad_key_is_named(own_errors, key):
    with pytest.raises(TypeError, match="key must be") as caught:
        pcgrad(key)
    assert_message(caught.value, "pcgrad", "jax.random.key(0)", "found")
