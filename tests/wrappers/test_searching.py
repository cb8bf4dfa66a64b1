"""Optimizers that ask for the loss, or search along it, get the combined one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_message
from tests._runs import first_step

START = np.float32([4.0, -3.0])
WEIGHTS = np.float32([1.0, 0.5])
SEARCH = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20))


def losses_of(p):
    return {"far": jnp.sum((p - 1) ** 4), "near": 3 * jnp.sum((p + 2) ** 2)}


def scan(step, tx, steps):
    @jax.jit
    def descend(p):
        return jax.lax.scan(step, (p, tx.init(p)), length=steps)[1]

    return np.asarray(descend(START))


def run(tx, steps, **value_fn):
    def step(carry, _):
        p, state = carry
        losses, grads = mt.value_and_term_grads(losses_of)(p)
        updates, state = tx.update(grads, state, p, losses=losses, **value_fn)
        return (p + updates, state), p

    return scan(step, tx, steps)


def on_one_loss(weights, steps):
    """The search on a loss that was combined by hand."""

    def value_fn(p):
        far, near = losses_of(p).values()
        return weights[0] * far + weights[1] * near

    def step(carry, _):
        p, state = carry
        value, grad = jax.value_and_grad(value_fn)(p)
        updates, state = SEARCH.update(
            grad, state, p, value=value, grad=grad, value_fn=value_fn
        )
        return (p + updates, state), p

    return scan(step, SEARCH, steps)


@pytest.mark.parametrize(
    ("tx", "weights"),
    [
        (mt.chain(mt.sum_terms(), SEARCH), [1.0, 1.0]),
        (mt.weighted(mt.constant(WEIGHTS), SEARCH, 2), WEIGHTS),
    ],
    ids=["chain", "weighted"],
)
def test_a_search_along_the_losses_is_one_along_their_sum(x64, tx, weights):
    found = run(tx, 8, value_fn=losses_of)
    assert_close(found, on_one_loss(weights, 8), rtol=1e-9)
    assert np.abs(found[-1] - found[-2]).max() > 0  # it still moves


def test_polyak_s_step_behind_the_sum_of_the_present_terms():
    """On the sum of two |w - 3| it goes to 3 at once, and on one of them, too."""
    tx = mt.chain(mt.sum_terms(), optax.polyak_sgd(max_learning_rate=10.0))
    w, nan = np.float32(2.5), np.nan
    known = {"losses": np.float32([0.5, 0.5])}
    updates, _ = first_step(tx, np.float32([-1, -1]), w, **known)
    assert_close(w + updates, np.array(3.0), rtol=1e-6)
    known = {"losses": np.float32([0.5, nan]), "present": np.array([True, False])}
    updates, _ = first_step(tx, np.float32([-1, nan]), w, **known)
    assert_close(w + updates, np.array(3.0), rtol=1e-6)


def trace(tx, grads, losses, **given):
    """The shapes of the first updates."""

    def first(grads, params, losses):
        state = tx.init(params)
        return tx.update(grads, state, params, losses=losses, **given)[0]

    return jax.eval_shape(first, grads, START, losses)


def test_one_s_own_value_and_value_fn_count():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    losses, grads = {"far": 1.0, "near": 2.0}, np.ones((2, 2), np.float32)
    for tx in (
        mt.chain(mt.sum_terms(), inner),
        mt.weighted(mt.constant(WEIGHTS), inner, 2),
    ):
        trace(tx, grads, losses, value=7.0, value_fn=lambda p, x: x)
        assert seen["value"] == 7.0
        assert seen["value_fn"](START, x=5.0) == 5.0
        # A line search hands over what the signature names, and refuses all else.
        given = {"losses": losses, "present": None}
        assert seen["value_fn"](START, 5.0, **given) == 5.0
        seen.clear()


def test_a_chain_that_knows_no_weights_supplies_nothing():
    tx = mt.chain(mt.balance_by_norm(2), mt.sum_terms(), optax.polyak_sgd())
    losses, grads = {"far": 1.0, "near": 2.0}, np.ones((2, 2), np.float32)
    with pytest.raises(TypeError, match="value") as error:
        trace(tx, grads, losses)
    note = "\n".join(error.value.__notes__)
    for part in ("chain: stages[2]", "losses=", "weighted(", "weights @ losses"):
        assert part in note
    updates = trace(tx, grads, losses, value=1.0)
    assert updates.shape == (2,)


def test_weighted_says_what_a_search_lacks():
    tx = mt.weighted(mt.mgda(), SEARCH, 2)
    with pytest.raises(TypeError, match="value_fn") as error:
        trace(tx, np.ones((2, 2), np.float32), {"far": 1.0, "near": 2.0})
    assert "weighted: " in error.value.__notes__[0]
    assert "pass value_fn= yourself" in error.value.__notes__[0]


@pytest.mark.usefixtures("own_errors")
def test_a_value_fn_of_another_number_of_losses():
    tx = mt.weighted(mt.constant(WEIGHTS), SEARCH, 2)
    grads = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="losses") as error:
        trace(tx, grads, {"far": 1.0, "near": 2.0}, value_fn=lambda p: jnp.ones(3))
    assert_message(error.value, "weighted", "num_terms=2", "found 3")


def test_nothing_changes_for_an_optimizer_that_asks_for_nothing():
    grads, plain = np.float32([[1.0, 0.0], [0.5, 2.0]]), optax.adam(0.1)
    losses = {"far": np.float32(1.0), "near": np.float32(2.0)}
    tx = mt.chain(mt.sum_terms(), plain)
    found, _ = first_step(tx, grads, START, losses=losses)
    assert_identical(found, first_step(plain, grads.sum(axis=0), START)[0])
