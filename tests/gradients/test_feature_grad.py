"""Weights from the gradients at the features, and one pass through the trunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import by_norm, equal, value_and_feature_grad
from tests._asserts import (
    assert_close,
    assert_identical,
    assert_message,
    assert_same_signature,
)
from tests.gradients._weighted import WAYS, flops, spy

WEIGHTS = np.array([0.5, -1.0, 2.0])


def weighing():
    return spy()._replace(
        update=lambda gramian, state, **_: (jnp.asarray(WEIGHTS), gramian)
    )


def problem(width=6):
    rng = np.random.default_rng(0)
    trunk = {"a": rng.normal(size=(4, width)), "b": rng.normal(size=(width, width))}
    heads = {k: rng.normal(size=width) for k in ("x", "y", "z")}
    return trunk, heads, rng.normal(size=(5, 4))


def features_fn(trunk, x):
    hidden = jnp.tanh(x @ trunk["a"])
    return jnp.sin(hidden @ trunk["b"])


def head_losses_fn(z, heads, x):
    return {k: jnp.mean((z @ h - x[:, 0]) ** 2) for k, h in heads.items()}


@pytest.mark.usefixtures("x64")
def test_gramian_at_the_features():
    trunk, heads, x = problem()
    every_way = [
        value_and_feature_grad(features_fn, head_losses_fn, weighing(), gramian=way)
        for way in (None, *WAYS)
    ]

    @jax.jit
    def compared(trunk, heads, x):
        z, pullback = jax.vjp(lambda trunk: features_fn(trunk, x), trunk)
        rows = jax.jacrev(head_losses_fn)(z, heads, x)
        rows = jnp.stack([row.reshape(-1) for row in rows.values()])
        along = (WEIGHTS @ rows).reshape(z.shape)
        own = jax.grad(lambda heads: sum(head_losses_fn(z, heads, x).values()))(heads)
        expected = rows @ rows.T, pullback(along)[0], own
        found = [pair.update(pair.init(3), trunk, heads, x) for pair in every_way]
        return expected, found

    (gramian, along, own), all_found = compared(trunk, heads, x)
    for losses, (found, of_heads), state in all_found:
        assert list(losses) == ["x", "y", "z"]
        assert_close(state.weighting, gramian, rtol=1e-12)
        assert_close(found, along, rtol=1e-12, atol=1e-14)
        assert_close(of_heads, own, rtol=1e-12)


def test_several_features_of_mixed_dtypes_aux_and_keywords():
    def features_fn(trunk, x, *, scale):
        hidden = x @ trunk
        return hidden * scale, (jnp.tanh(hidden).astype(jnp.bfloat16),)

    def head_losses_fn(z, heads, x, *, scale):
        first, (second,) = z
        wide = second.astype(jnp.float32)
        return [jnp.sum(first @ heads) / scale, jnp.sum(wide**2)], {"size": x.shape}

    feature_grad = value_and_feature_grad(
        features_fn, head_losses_fn, spy(), has_aux=True
    )
    trunk, heads = np.full((3, 2), 0.1, np.float32), np.float32([2, 3])
    x = np.ones((4, 3), np.float32)

    def step(trunk, heads, x):
        (losses, aux), grads, state = feature_grad.update(
            feature_grad.init(2), trunk, heads, x, scale=2.0
        )
        assert aux == {"size": (4, 3)}
        return losses, grads, state

    _, (along, own), state = jax.jit(step)(trunk, heads, x)
    tanh = np.tanh(0.3)
    assert_close(state.weighting, np.diag([13.0, 8 * 4 * tanh**2]), rtol=0.02)
    rows = np.tile([2.0, 3.0], (3, 1)) * 4 + 8 * tanh * (1 - tanh**2)
    assert_close(along, rows, rtol=0.02)
    assert along.dtype == jnp.float32
    assert_close(own, np.full(2, 1.2), rtol=1e-5)


def test_held_weights_and_absent_terms():
    trunk, heads, x = problem()
    feature_grad = value_and_feature_grad(
        features_fn, head_losses_fn, by_norm(), every=2
    )
    update, state = jax.jit(feature_grad.update), feature_grad.init(3)
    known = np.array([True, False, True])
    _, (along, own), first = update(state, trunk, heads, x, present=known)
    assert_same_signature(first, state)
    assert_identical(own["y"], np.zeros(6))
    assert np.asarray(first.weights)[1] == 0
    smaller = value_and_feature_grad(features_fn, head_losses_fn, by_norm())
    some = {"x": heads["x"], "z": heads["z"]}
    _, (expected, _), _ = jax.jit(smaller.update)(smaller.init(2), trunk, some, x)
    assert_close(along, expected, rtol=1e-4, atol=1e-6)
    second = update(first, trunk, heads, x + 1, present=known)[2]
    assert_identical(second.weights, first.weights)


def test_one_pass_through_the_trunk():
    trunk, heads, x = jax.tree.map(np.float32, problem(width=64))

    def total(trunk, heads, x):
        return sum(head_losses_fn(features_fn(trunk, x), heads, x).values())

    feature_grad = value_and_feature_grad(features_fn, head_losses_fn, spy())
    plain = flops(jax.value_and_grad(total, argnums=(0, 1)), trunk, heads, x)
    found = flops(feature_grad.update, feature_grad.init(3), trunk, heads, x)
    # Beside it the products of three gradients [5, 64].
    assert found <= 1.05 * plain + 2 * 6 * 5 * 64 + 3 * 10 * 5 * 64


def test_many_heads_cost_one_pass_through_each():
    terms, width = 20, 32
    rng = np.random.default_rng(0)
    heads = [
        (rng.normal(size=(6, width)), rng.normal(size=width)) for _ in range(terms)
    ]
    trunk, heads, x = jax.tree.map(
        np.float32, (rng.normal(size=(4, 6)), heads, rng.normal(size=(5, 4)))
    )

    def features_fn(trunk, x):
        return x @ trunk

    def head_losses_fn(z, heads, x):
        return jnp.stack([jnp.mean(jnp.tanh(z @ a) @ b - x[:, 0]) for a, b in heads])

    def compared(trunk, heads, x):
        state = feature_grad.update(feature_grad.init(terms), trunk, heads, x)[2]
        rows = jax.jacrev(head_losses_fn)(features_fn(trunk, x), heads, x)
        return state.weighting, jnp.tensordot(rows, rows, ((1, 2), (1, 2)))

    feature_grad = value_and_feature_grad(features_fn, head_losses_fn, spy())
    found, expected = jax.tree.map(np.asarray, jax.jit(compared)(trunk, heads, x))
    assert_close(found, expected, rtol=1e-4, atol=1e-5 * np.max(expected))

    def total(trunk, heads, x):
        return jnp.sum(head_losses_fn(features_fn(trunk, x), heads, x))

    # The passes to the features, which the sum's gradient takes, too, come twice; the
    # gramian is of gradients [5, 6]. Operations in a loop would count but once.
    step = jax.jit(feature_grad.update).lower(feature_grad.init(terms), trunk, heads, x)
    assert "while" not in step.as_text()
    plain = flops(jax.value_and_grad(total, argnums=(0, 1)), trunk, heads, x)
    assert step.compile().cost_analysis()["flops"] <= 1.5 * plain + 2 * terms**2 * 30


def made(features=features_fn, losses=head_losses_fn, **more):
    return value_and_feature_grad(features, losses, equal(), **more)


BAD = {
    "features": (lambda: made(features=1.0), TypeError, ["features_fn", "1.0"]),
    "losses": (lambda: made(losses=None), TypeError, ["head_losses_fn", "None"]),
    "way": (lambda: made(gramian="rows"), ValueError, ["gramian", "'rows'"]),
    "arguments": (
        lambda: made().update(made().init(3), {}),
        ValueError,
        ["trunk, heads", "found 1"],
    ),
    "integers": (
        lambda: made(lambda t, x: jnp.arange(3)).update(made().init(3), *problem()),
        TypeError,
        ["the result of features_fn", "int32"],
    ),
    "number": (
        lambda: made().update(made().init(2), *problem()),
        ValueError,
        ["num_terms=2", "found 3"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(own_errors, case):
    call, error, words = BAD[case]
    with pytest.raises(error) as info:
        jax.eval_shape(call)
    assert_message(info.value, "value_and_feature_grad", *words)
