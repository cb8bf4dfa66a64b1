"""Weights measured on part of the parameters; all receive the weighted gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import equal, value_and_weighted_grad
from tests._asserts import assert_close, assert_message
from tests.gradients._weighted import (
    SHARED,
    WAYS,
    column_losses,
    dots,
    doubled,
    flat,
    flops,
    head_losses,
    make_heads,
    network,
    spy,
)

NUM_TERMS = 4


def last_layer(layers):
    return [False] * (len(layers) - 1) + [True]


@pytest.mark.usefixtures("x64")
def test_the_gramian_of_the_last_layer():
    layers, x = network(8, 3), np.random.default_rng(1).normal(size=(5, 8))
    layers = jax.tree.map(lambda leaf: leaf.astype(float), layers)
    losses_fn = column_losses(NUM_TERMS)
    every_way = [
        value_and_weighted_grad(losses_fn, spy(), gramian=way, measured=last_layer)
        for way in (None, *WAYS)
    ]

    @jax.jit
    def compared(layers):
        found = [pair.update(pair.init(NUM_TERMS), layers, x) for pair in every_way]
        return found, jax.jacrev(losses_fn)(layers, x)

    all_found, jacobian = jax.tree.map(np.asarray, compared(layers))
    rows = flat(jacobian[-1])
    total = jax.tree.map(lambda leaf: leaf.sum(0), jacobian)
    for _, grads, state in all_found:
        assert_close(state.weighting, rows @ rows.T, rtol=1e-12)
        assert_close(grads, total, rtol=1e-12, atol=1e-15)


def test_beside_shared():
    params, x = make_heads(), np.ones((5, 24), np.float32)
    weighted_grad = value_and_weighted_grad(
        head_losses,
        spy()._replace(update=lambda g, s, **_: (jnp.array([2.0, 0.0, 1.0]), g)),
        shared=SHARED["prefix"],
        measured={"trunk": [False, True], "heads": False},
    )

    @jax.jit
    def compared(params):
        found = weighted_grad.update(weighted_grad.init(3), params, x)
        return found, jax.jacrev(head_losses)(params, x)

    (_, grads, state), each = jax.tree.map(np.asarray, compared(params))
    rows = [of["trunk"][1] for of in each.values()]
    assert_close(state.weighting, dots(rows), rtol=1e-5)
    first, second = (each[k]["trunk"][0]["w"] for k in ("h0", "h2"))
    assert_close(grads["trunk"][0]["w"], 2 * first + second, rtol=1e-5, atol=1e-6)
    assert_close(grads["heads"]["h1"], each["h1"]["heads"]["h1"], rtol=1e-5)


@pytest.mark.parametrize(("num_terms", "way"), [(4, None), (4, "stack"), (20, None)])
def test_passes_end_where_it_is_measured(num_terms, way):
    layers, x = network(64, 6), np.ones((16, 64), np.float32)
    losses_fn = column_losses(num_terms)

    def last_only(layer, x):
        return losses_fn([layer], x)

    weighted_grad = value_and_weighted_grad(
        losses_fn, spy(), gramian=way, measured=last_layer
    )
    found = flops(weighted_grad.update, weighted_grad.init(num_terms), layers, x)
    plain = flops(jax.value_and_grad(lambda *a: losses_fn(*a).sum()), layers, x)
    passes = flops(jax.jacrev(last_only), layers[-1], x)
    products = 2 * num_terms**2 * 64 * 65
    assert found <= 1.1 * (plain + passes + products)


def test_a_custom_vjp_below_it():
    def losses_fn(p):
        hidden = jnp.sum(doubled(p["low"])) * p["high"]
        return [jnp.sum(hidden), jnp.sum(hidden**2)]

    weighted_grad = value_and_weighted_grad(
        losses_fn, spy(), measured={"low": False, "high": True}
    )
    params = {"low": np.float32([1, 0.5]), "high": np.float32([2, -1])}
    state = jax.jit(weighted_grad.update)(weighted_grad.init(2), params)[2]
    rows = [np.array([3.0, 3.0]), 2 * 9 * np.array([2.0, -1.0])]
    assert_close(state.weighting, dots(rows), rtol=1e-6)


@pytest.mark.parametrize(
    ("measured", "error", "words"),
    [
        ({"v": True}, ValueError, ["structure", "'v'"]),
        (False, ValueError, ["at least one"]),
        (1.0, TypeError, ["booleans", "1.0"]),
    ],
)
def test_bad_input_is_named(own_errors, measured, error, words):
    weighted_grad = value_and_weighted_grad(
        lambda w: [w["w"], 2 * w["w"]], equal(), measured=measured
    )
    with pytest.raises(error) as info:
        weighted_grad.update(weighted_grad.init(2), {"w": jnp.ones(())})
    assert_message(info.value, "value_and_weighted_grad", "measured", *words)
