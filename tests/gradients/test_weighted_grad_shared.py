"""Weights found from the parameters that the terms share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import (
    constant,
    value_and_weighted_grad,
)
from tests._asserts import (
    assert_close,
    assert_same_structure,
)
from tests.gradients._weighted import (
    SHARED,
    WAYS,
    combination,
    dots,
    flops,
    forward,
    head_losses,
    make_heads,
    spy,
)


@functools.cache
def heads_problem():
    """Parameters, a batch, and the gradient of each term by a call of jax.grad."""
    params = make_heads()
    x = np.random.default_rng(1).normal(size=(16, 24)).astype(np.float32)
    rows = jax.jit(jax.jacrev(head_losses))(params, x)
    return params, x, [rows[name] for name in ("h0", "h1", "h2")]


# The forms of ``shared`` are tried below, too, with a weighting that costs less.
@pytest.mark.parametrize(
    ("way", "shared"),
    [(way, "prefix") for way in WAYS]
    + [
        pytest.param("leaf", shared, marks=pytest.mark.slow)
        for shared in ("callable", "full")
    ],
)
def test_heads_receive_their_own_gradient(shared, way):
    params, x, rows = heads_problem()
    weighted_grad = value_and_weighted_grad(
        head_losses, spy(), gramian=way, shared=SHARED[shared]
    )
    _, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(3), params, x)
    assert_close(state.weighting, dots([row["trunk"] for row in rows]), rtol=2e-6)
    assert_same_structure(grads, params)
    for i, head in enumerate(("h0", "h1", "h2")):
        assert_close(grads["heads"][head], rows[i]["heads"][head], rtol=1e-6)


@pytest.mark.parametrize("shared", SHARED)
def test_weights_that_need_no_gramian_leave_the_heads_alone(shared):
    params, x, rows = heads_problem()
    fixed = value_and_weighted_grad(
        head_losses, constant([0.5, 0.0, 2.0]), shared=SHARED[shared]
    )
    _, grads, _ = jax.jit(fixed.update)(fixed.init(3), params, x)
    trunk = combination([0.5, 0.0, 2.0], [row["trunk"] for row in rows])
    assert_close(grads["trunk"], trunk, rtol=1e-5)
    for i, head in enumerate(("h0", "h1", "h2")):
        assert_close(grads["heads"][head], rows[i]["heads"][head], rtol=1e-6)


def test_heads_cost_no_second_pass_through_the_trunk():
    params, x = make_heads(), np.ones((16, 24), np.float32)
    trunk = {"trunk": True, "heads": False}
    split = value_and_weighted_grad(head_losses, constant(np.ones(3)), shared=trunk)
    whole = value_and_weighted_grad(head_losses, constant(np.ones(3)))
    found = flops(split.update, split.init(3), params, x)
    plain = flops(whole.update, whole.init(3), params, x)

    # At most the cotangents of the three heads once more: their elementwise part.
    def of_heads(heads, hidden):
        losses = {k: jnp.mean((hidden @ h - 1) ** 2) for k, h in heads.items()}
        return sum(losses.values())

    heads = flops(jax.grad(of_heads), params["heads"], x)
    assert found - plain <= heads
    assert found <= 1.05 * plain


def test_shared_with_several_arguments():
    def losses_fn(u, x, v):
        return jnp.stack([jnp.sum(u * x) * v[0], jnp.sum(u**2) + v[1] ** 2])

    u, x, v = np.float32([1, 2]), np.float32([3, 1]), np.float32([2, 3])
    weighted_grad = value_and_weighted_grad(
        losses_fn, constant([2.0, 3.0]), argnums=(2, 0), shared=(False, True)
    )
    update = jax.jit(weighted_grad.update)
    _, (dv, du), _ = update(weighted_grad.init(2), u, x, v)
    assert_close(du, 2 * 2 * x + 3 * 2 * u, rtol=1e-6)
    assert_close(dv, np.array([5.0, 6.0]), rtol=1e-6)


def test_weights_from_the_shared_features():
    # MGDA's upper bound: the gramian of the features' gradients.
    params, x, each = heads_problem()

    def losses_of(features, heads):
        return {k: jnp.mean((features @ h - 1) ** 2) for k, h in heads.items()}

    weighted_grad = value_and_weighted_grad(
        losses_of, spy(), argnums=(0, 1), shared=(True, False)
    )

    @jax.jit
    def compared(params, x):
        features, pull_back = jax.vjp(lambda p: forward(p, x), params["trunk"])
        heads = params["heads"]
        _, (along, _), state = weighted_grad.update(
            weighted_grad.init(3), features, heads
        )
        rows = jax.jacrev(losses_of)(features, heads)
        return state.weighting, list(rows.values()), pull_back(along)[0]

    gramian, rows, along = compared(params, x)
    assert_close(gramian, dots(rows), rtol=1e-6)
    total = combination(np.ones(3), [row["trunk"] for row in each])
    assert_close(along, total, rtol=1e-5)
