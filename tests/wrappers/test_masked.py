"""masked: some leaves through a K -> 1 optimizer, the sum of the terms for the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_message
from tests._runs import all_steps, first_step

K = 3
PARAMS = {
    "head": {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)},
    "trunk": {"w": np.ones((3, 2), np.float32), "b": np.ones(3, np.float32)},
}
TRUNK = {"head": False, "trunk": True}
MATRICES = {"head": {"w": True, "b": False}, "trunk": {"w": True, "b": False}}


def draw(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(size=(K, *p.shape)).astype(np.float32), PARAMS
    )


def sums(tree):
    return jax.tree.map(lambda g: np.sum(g, axis=0), tree)


def test_chosen_leaves_go_through_inner_and_the_others_are_summed():
    inner = mt.mtadam(0.1, K)
    tx = mt.masked(inner, TRUNK, K)
    grads = jax.tree.map(lambda *g: np.stack(g), *map(draw, range(3)))
    updates, state = all_steps(tx, grads, PARAMS)
    expected, plain = all_steps(inner, grads["trunk"], PARAMS["trunk"])
    assert_close(updates["trunk"], expected, rtol=1e-6)
    for seed in range(3):
        head = jax.tree.map(lambda u, t=seed: u[t], updates["head"])
        assert_close(head, sums(draw(seed)["head"]), rtol=1e-6)
    found, wanted = jax.tree.leaves(state), jax.tree.leaves(plain)
    assert [x.shape for x in found] == [x.shape for x in wanted]
    assert isinstance(state, optax.MaskedState)


@pytest.mark.parametrize(
    "mask",
    [
        MATRICES,
        lambda params: jax.tree.map(lambda p: p.ndim == 2, params),
        lambda params: jax.tree.map(lambda p: np.bool_(p.ndim > 1), params),
    ],
)
@pytest.mark.parametrize("with_params", [True, False])
def test_masks_see_the_parameters_shapes(mask, with_params):
    tx = mt.masked(mt.adatask(optax.scale(-1.0), K), mask, K)
    grads = draw()
    params = PARAMS if with_params else None
    state = jax.eval_shape(tx.init, PARAMS)  # of no arrays
    updates, _ = jax.jit(tx.update)(grads, state, params)
    total = sums(grads)
    for part in ("head", "trunk"):
        assert_close(updates[part]["w"], -total[part]["w"], rtol=1e-6)
        assert_close(updates[part]["b"], total[part]["b"], rtol=1e-6)


def test_all_and_none():
    grads, total = draw(), sums(draw())
    inner = mt.adatask(optax.scale(-1.0), K)
    for mask, sign in ((True, -1.0), (False, 1.0)):
        tx = mt.masked(inner, mask, K)
        updates, _ = first_step(tx, grads, PARAMS)
        assert_close(updates, jax.tree.map(lambda t, s=sign: s * t, total), rtol=1e-6)


def test_two_masks_share_the_parameters():
    # What is left out of the first goes through an ordinary optimizer afterwards.
    rest = {"head": True, "trunk": False}
    tx = mt.chain(mt.masked(mt.mtadam(0.1, K), TRUNK, K), optax.masked(ADAM, rest))
    grads = draw()
    updates, _ = first_step(tx, grads, PARAMS)
    head = sums(grads["head"])
    expected, _ = first_step(ADAM, head, head)
    assert_close(updates["head"], expected, rtol=1e-6)


ADAM = optax.adam(0.1)


def test_absent_terms_take_no_part_in_the_sum():
    grads, present = draw(), np.array([True, False, True])
    for leaf in jax.tree.leaves(grads):
        leaf[1] = np.nan
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return jax.tree.map(lambda u: u[0], updates), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    tx = mt.masked(inner, TRUNK, K)

    @jax.jit
    def run(grads, present):
        extra = {"present": present, "value": 2.0, "losses": {"a": 1}}
        updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, **extra)
        assert seen["present"] is present
        return updates

    expected = jax.tree.map(lambda g: g[0] + g[2], grads["head"])
    assert_close(run(grads, present)["head"], expected, rtol=1e-6)
    assert seen["value"] == 2.0
    assert seen["losses"] == {"a": 1}
    seen.clear()
    jax.eval_shape(tx.update, draw(), jax.eval_shape(tx.init, PARAMS), PARAMS)
    assert not seen


def test_low_precision_sums_are_accumulated_wide():
    grads = np.array([[256.0], [0.5], [0.5]], jnp.bfloat16)
    updates, _ = first_step(mt.masked(mt.sum_terms(), False, K), grads)
    assert updates.dtype == jnp.bfloat16
    assert updates[0] == np.float64(grads).sum().astype(jnp.bfloat16)


def test_map_params_passes_through():
    tx = mt.masked(mt.mtadam(0.1, K), TRUNK, K)
    shapes = jax.eval_shape(tx.init, PARAMS)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    mapped = optax.tree.map_params(
        tx, lambda x: x + 1, state, transform_non_params=lambda x: x
    )
    mu = optax.tree.get(mapped, "mu")
    assert_identical(mu["trunk"], jax.tree.map(np.ones_like, PARAMS["trunk"]))
    assert int(optax.tree.get(mapped, "count")) == 0


@pytest.mark.usefixtures("own_errors")
def test_bad_arguments_are_refused():
    inner = mt.mtadam(0.1, K)
    with pytest.raises(TypeError, match="masked: inner must be an optax"):
        mt.masked(0.1, TRUNK, K)
    with pytest.raises(TypeError, match=r"mask must hold booleans .*found 'yes'"):
        mt.masked(inner, {"head": True, "trunk": "yes"}, K).init(PARAMS)
    with pytest.raises(ValueError, match="mask must be a tree of booleans"):
        mt.masked(inner, {"head": True}, K).init(PARAMS)
    tx = mt.masked(mt.balance_by_norm(K), TRUNK, K)
    with pytest.raises(ValueError, match="inner must remove the term axis") as error:
        first_step(tx, draw(), PARAMS)
    assert_message(error.value, "masked", "updates['trunk']['b']", "(3, 3)", "(3,)")
