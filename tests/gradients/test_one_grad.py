"""The gradient of one term per step: which one, its value, and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import CountedTraces, assert_identical, assert_message
from tests.gradients._weighted import flops

K, WIDTH, ROWS = 4, 32, 256
NAMES = ("a", "b", "c", "d")


def network():
    rng = np.random.default_rng(0)
    shapes = {"in": (WIDTH, WIDTH), "out": (WIDTH, WIDTH), "head": (WIDTH, K)}
    return {
        name: np.asarray(0.1 * rng.normal(size=shape), np.float32)
        for name, shape in shapes.items()
    }


def one_loss(params, x, term):
    """A term with a forward pass of its own, as residuals at different points are."""
    hidden = jnp.tanh(jnp.tanh((x + term) @ params["in"]) @ params["out"])
    return jnp.mean((hidden @ params["head"][:, term] - term) ** 2)


def as_dict(params, x):
    return {name: one_loss(params, x, i) for i, name in enumerate(NAMES)}


def as_array(params, x):
    return jnp.stack([one_loss(params, x, i) for i in range(K)])


def from_one_pass(params, x):
    """All terms from one matrix, which cannot be taken apart."""
    hidden = jnp.tanh(x @ params["in"])
    return jnp.mean((hidden @ params["head"] - 1) ** 2, axis=0)


FUNCTIONS = {"dict": as_dict, "array": as_array, "one pass": from_one_pass}


def batch():
    return np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("which", FUNCTIONS)
def test_is_the_row_of_all_gradients(which):
    losses_fn, params, x = FUNCTIONS[which], network(), batch()
    # What the terms are in is no matter of the values.
    of_terms = from_one_pass if which == "one pass" else as_array
    losses, grads = jax.jit(mt.value_and_term_grads(of_terms))(params, x)
    counted = CountedTraces(mt.value_and_one_grad(losses_fn))
    value_and_grad = jax.jit(counted)
    for step in (0, 3, 6):
        found_losses, found, present = value_and_grad(step, params, x)
        term = step % K
        np.testing.assert_array_equal(present, np.arange(K) == term)
        shapes = jax.eval_shape(losses_fn, params, x)
        assert jax.tree.structure(found_losses) == jax.tree.structure(shapes)
        values = np.ravel(jax.tree.leaves(found_losses))
        expected = np.asarray(losses) * np.asarray(present)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        for name, leaf in found.items():
            wanted = np.zeros(leaf.shape)
            wanted[term] = np.asarray(grads[name])[term]
            np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-7)
    assert counted.count == 1


@pytest.mark.parametrize("which", ["dict", "array"])
def test_costs_one_gradient(which):
    losses_fn, params, x = FUNCTIONS[which], network(), batch()
    one = flops(jax.value_and_grad(lambda p, x: one_loss(p, x, 1)), params, x)
    all_terms = flops(mt.value_and_term_grads(losses_fn), params, x)
    found = flops(mt.value_and_one_grad(losses_fn), 0, params, x)
    # A few operations more on K copies of the parameters, none on the batch.
    assert found <= 1.05 * one
    assert found < 0.3 * all_terms


@pytest.mark.parametrize("weighting", [mt.mgda, mt.cagrad, mt.upgrad])
def test_a_whole_step_costs_about_one_gradient(weighting):
    params, x = network(), batch()
    tx = mt.chain(mt.one_at_a_time(weighting(), K), optax.sgd(0.1))
    value_and_grad = mt.value_and_one_grad(as_dict)

    def step(count, params, state, x):
        losses, grads, present = value_and_grad(count, params, x)
        updates, state = tx.update(grads, state, params, losses=losses, present=present)
        return optax.apply_updates(params, updates), state

    one = flops(jax.value_and_grad(lambda p, x: one_loss(p, x, 1)), params, x)
    # What the momenta and their products cost does not grow with the batch.
    state = jax.eval_shape(tx.init, params)
    assert flops(step, 0, params, state, x) <= 1.1 * one


@pytest.mark.usefixtures("full_compilation")
def test_no_gradients_of_all_terms_are_ever_held():
    # Large parameters and a small batch. Donated, the momenta are changed in place.
    params = {"in": (256, 256), "out": (256, 256), "head": (256, K)}
    params = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in params.items()}
    # What a weighting makes of the gramian is small beside it.
    weighting = mt.Weighting(
        lambda num_terms: (),
        lambda gramian, state, **_: (1 / (1 + jnp.diagonal(gramian)), state),
    )
    tx = mt.chain(mt.one_at_a_time(weighting, K), optax.sgd(0.1))
    value_and_grad = mt.value_and_one_grad(as_dict)

    def step(params, state, count, x):
        _, grads, present = value_and_grad(count, params, x)
        updates, state = tx.update(grads, state, params, present=present)
        return optax.apply_updates(params, updates), state

    arguments = (
        params,
        jax.eval_shape(tx.init, params),
        0,
        jax.ShapeDtypeStruct((4, 256), jnp.float32),
    )
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    copy = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    # That of the one gradient, which the switch returns.
    assert program.memory_analysis().temp_size_in_bytes <= 1.2 * copy


def test_parameters_that_the_term_does_not_touch_have_no_gradient():
    def losses_fn(params):
        return {"a": params["a"] ** 2, "b": params["b"] ** 2}

    params = {"a": np.float32(3), "b": np.float32(5)}
    _, grads, _ = jax.jit(mt.value_and_one_grad(losses_fn))(1, params)
    assert_identical(grads, {"a": np.zeros(2), "b": np.array([0.0, 10.0])})


def test_aux_and_several_arguments():
    def losses_fn(w, v, *, scale):
        return jnp.stack([scale * w * v, w - v]), {"sum": w + v}

    fn = mt.value_and_one_grad(losses_fn, argnums=(0, 1), has_aux=True)
    (losses, aux), grads, present = jax.jit(fn)(2, 2.0, 3.0, scale=10.0)
    assert losses.tolist() == [60.0, 0.0]
    assert aux["sum"] == 5.0
    assert [g.tolist() for g in grads] == [[30.0, 0.0], [20.0, 0.0]]
    assert present.tolist() == [True, False]


def test_one_term_needs_no_switch():
    _, grads, present = jax.jit(mt.value_and_one_grad(lambda w: [w**2]))(7, 3.0)
    assert grads.tolist() == [6.0]
    assert present.tolist() == [True]


def test_half_precision_and_losses_of_two_dtypes():
    def losses_fn(w):
        return {"a": jnp.sum(w), "b": jnp.sum(w.astype(jnp.float32))}

    value_and_grad = jax.jit(mt.value_and_one_grad(losses_fn))
    losses, grads, _ = value_and_grad(1, np.ones(2, jnp.bfloat16))
    assert losses["a"].dtype == grads.dtype == jnp.bfloat16
    assert losses["b"].dtype == jnp.float32
    assert grads.tolist() == [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("shares", [[1, 1, 1], [6, 3, 1], [0.9, 0.0, 0.1], [0, 2, 0]])
def test_shares(shares):
    fn = mt.value_and_one_grad(lambda w: jnp.stack([w, w, w]), shares=shares)
    steps = np.arange(3000, dtype=np.int32)
    choose = jax.jit(jax.vmap(lambda step: fn(step, jnp.float32(1))[2]))
    chosen = choose(steps)
    wanted = np.array(shares) / np.sum(shares)
    counts = np.cumsum(np.asarray(chosen), axis=0)
    # As evenly as it can be: never far from the share, early or late.
    behind = np.abs(counts - wanted * np.arange(1, 3001)[:, None])
    assert np.max(behind) < 4
    assert counts[-1].sum() == 3000
    late = np.asarray(choose(2**31 - 1 - steps))
    np.testing.assert_allclose(np.mean(late, axis=0), wanted, atol=2e-3)


def test_shares_may_be_traced():
    def one(shares):
        fn = mt.value_and_one_grad(lambda w: jnp.stack([w, w]), shares=shares)
        return fn(5, jnp.float32(1))[2]

    assert jax.jit(one)(np.float32([0, 1])).tolist() == [False, True]


BAD = {
    "no function": (lambda: mt.value_and_one_grad(3.0), TypeError, "losses_fn must"),
    "shares": (
        lambda: mt.value_and_one_grad(as_dict, shares=[1.0, -1.0]),
        ValueError,
        "shares must",
    ),
    "no share": (
        lambda: mt.value_and_one_grad(as_dict, shares=[0, 0, 0, 0]),
        ValueError,
        "shares must not all be 0",
    ),
    "steps": (
        lambda: mt.value_and_one_grad(as_dict)(jnp.arange(2), network(), batch()),
        TypeError,
        "step must",
    ),
    "too few shares": (
        lambda: mt.value_and_one_grad(as_dict, shares=[1.0, 1.0])(
            0, network(), batch()
        ),
        ValueError,
        "shares must",
    ),
    "step": (
        lambda: mt.value_and_one_grad(as_dict)(0.5, network(), batch()),
        TypeError,
        "step must",
    ),
    "the step forgotten": (
        lambda: mt.value_and_one_grad(as_dict)(network(), batch()),
        TypeError,
        "step must",
    ),
    "no aux": (
        lambda: mt.value_and_one_grad(as_dict, has_aux=True)(0, network(), batch()),
        TypeError,
        "a pair (losses, aux)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(own_errors, case):
    call, error, words = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert_message(caught.value, "value_and_one_grad: ", words, "found")
