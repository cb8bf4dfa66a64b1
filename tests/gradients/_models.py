"""Row losses of models of every structure, in float64, for three rows.

Each function returns ``(params, row_losses, rows, cut)``, where ``cut`` names the
parameters that the gramian needs no gradients of.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from tests._params import some

ROWS = 3


def numbers(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def dense():
    params = {"w": numbers(4, 5), "b": numbers(5), "s": numbers(5), "v": numbers(6, 5)}

    @jax.jit
    def row_losses(p, x):
        hidden = jnp.tanh(x @ p["w"] + p["b"]) * p["s"]
        # The other side of the product, and a transposed matrix.
        return jnp.sum((p["v"] @ hidden.T).T ** 3, axis=1)

    return params, row_losses, numbers(ROWS, 4), {"w", "v"}


def layer_norm():
    params = {"w": numbers(4, 5), "scale": numbers(5), "bias": numbers(5)}

    def row_losses(p, x):
        y = x @ p["w"]
        y = (y - y.mean(1, keepdims=True)) / jnp.sqrt(y.var(1, keepdims=True) + 1e-3)
        return jnp.sum((y * p["scale"] + p["bias"]) ** 3, axis=1)

    return params, row_losses, numbers(ROWS, 4), {"w"}


def embedding():
    # Entries that repeat, and one out of bounds.
    params = {"table": numbers(30, 4), "out": numbers(4, 2), "free": numbers(5, 4)}
    rows = np.array([[1, 2, 1, 7], [7, 99, 7, 7], [3, 2, 4, 5]])

    def row_losses(p, entries):
        found = p["table"].at[entries].get(mode="fill", fill_value=0)
        clipped = p["free"].at[entries].get(mode="clip")
        return jnp.sum(jnp.tanh((found + clipped) @ p["out"]) ** 2, axis=(1, 2))

    return params, row_losses, rows, {"table", "out", "free"}


def convolution():
    # Strides, holes in kernel and image, uneven borders, negative ones, two layouts.
    params = {"k": numbers(2, 3, 2, 3), "l": numbers(4, 3, 2, 2), "out": numbers(4, 2)}

    def row_losses(p, x):
        x = jax.lax.conv_general_dilated(
            x,
            p["k"],
            (2, 1),
            [(2, 1), (-1, 2)],
            lhs_dilation=(2, 1),
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jnp.moveaxis(jnp.tanh(x), 3, 1)
        x = jax.lax.conv_general_dilated(x, p["l"], (1, 1), "SAME")
        return jnp.sum((x.mean((2, 3)) @ p["out"]) ** 2, axis=1)

    return params, row_losses, numbers(ROWS, 4, 5, 2), {"k", "l", "out"}


def attention():
    params = {k: numbers(4, 2, 3, seed=i) for i, k in enumerate("qkv")}
    params["o"] = numbers(2, 3, 4)

    def row_losses(p, x):
        q, k, v = (jnp.einsum("btd,dhe->bthe", x, p[one]) for one in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k) / 2, axis=-1)
        mixed = jnp.einsum("bhts,bshe->bthe", scores, v)
        return jnp.sum(jnp.einsum("bthe,hed->btd", mixed, p["o"]) ** 3, axis=(1, 2))

    return params, row_losses, numbers(ROWS, 5, 4), {"q", "k", "v", "o"}


def recurrent():
    params = {"a": numbers(4, 4), "in": numbers(3, 4), "out": numbers(4, 2)}

    def row_losses(p, x):
        def step(h, x):
            h = jnp.tanh(h @ p["a"] + x @ p["in"])
            return h, None

        h, _ = jax.lax.scan(step, jnp.zeros((len(x), 4)), x.swapaxes(0, 1))
        return jnp.sum((h @ p["out"]) ** 2, axis=1)

    return params, row_losses, numbers(ROWS, 5, 3), {"out"}


def tied():
    params = {"table": numbers(7, 4), "w": numbers(4, 4)}
    rows = np.array([[1, 2], [6, 6], [3, 2]])

    def row_losses(p, entries):
        hidden = jnp.tanh(p["table"][entries] @ p["w"])
        return jnp.sum(jax.nn.logsumexp(hidden @ p["table"].T, axis=-1), axis=1)

    return params, row_losses, rows, {"w"}


def remat():
    params = {"a": numbers(4, 5), "b": numbers(5, 2)}

    def row_losses(p, x):
        hidden = jax.checkpoint(lambda a, x: jnp.tanh(x @ a))(p["a"], x)
        return jnp.sum(jnp.sin(hidden @ p["b"]), axis=1)

    return params, row_losses, numbers(ROWS, 4), {"b"}


def ensemble():
    params = {"w": numbers(2, 4, 5), "out": numbers(2, 5)}

    def row_losses(p, x):
        member = lambda w, out: jnp.tanh(x @ w) @ out  # noqa: E731
        return jnp.sum(jax.vmap(member)(p["w"], p["out"]) ** 2, axis=0)

    return params, row_losses, numbers(ROWS, 4), {"w", "out"}


def one_row_at_a_time():
    params = {"w": numbers(4, 5), "s": np.array(0.5), "out": numbers(5)}

    def row_losses(p, x):
        alone = lambda x: jnp.sin(jnp.tanh(x @ p["w"]) @ p["out"] * p["s"])  # noqa: E731
        return jax.vmap(alone)(x)

    return params, row_losses, numbers(ROWS, 4), {"w", "out"}


def custom_vjp():
    @jax.custom_vjp
    def steeper(x):
        return x

    # Linear in the cotangents, so that a sum of terms has the sum of their gradients.
    steeper.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.arange(1.0, 6.0),))
    params = {"w": numbers(4, 5), "out": numbers(5, 2)}

    def row_losses(p, x):
        return jnp.sum(steeper(jnp.tanh(x @ p["w"])) @ p["out"], axis=1)

    return params, row_losses, numbers(ROWS, 4), {"w", "out"}


def other_uses():
    params = {k: numbers(3, 3, seed=i) for i, k in enumerate(["both", "part", "as is"])}

    def row_losses(p, x):
        y = jnp.tanh(x @ p["both"]) @ p["both"] + x[:, :2] @ p["part"][:2]
        return jnp.sum(y**2, axis=1) + jnp.sum(p["as is"] ** 2)

    return params, row_losses, numbers(ROWS, 3), set()


def flax_linen():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, tokens):
            x = linen.Embed(11, 4, param_dtype=float)(tokens)
            x = x + linen.MultiHeadDotProductAttention(2, param_dtype=float)(x)
            x = linen.LayerNorm(param_dtype=float)(x)
            x = linen.Conv(3, (3,), param_dtype=float)(x)
            return linen.Dense(2, param_dtype=float)(linen.gelu(x))

    net, rows = Net(), np.arange(12).reshape(ROWS, 4) % 11
    made = jax.eval_shape(net.init, jax.random.key(0), rows)["params"]
    params = jax.tree.map(lambda leaf: numbers(*leaf.shape) / 2, made)

    def row_losses(p, tokens):
        return jnp.sum(net.apply({"params": p}, tokens) ** 2, axis=(1, 2))

    return params, row_losses, rows, {"kernel", "embedding"}


def flax_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs, param_dtype=float)
            self.norm = nnx.LayerNorm(2, rngs=rngs, param_dtype=float)
            self.out = nnx.Linear(18, 3, rngs=rngs, param_dtype=float)

        def __call__(self, x):
            x = nnx.gelu(self.norm(self.conv(x)))
            return self.out(x.reshape(len(x), -1))

    graph, made = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param)
    params = jax.tree.map(lambda leaf: numbers(*leaf.shape) / 2, made)

    def row_losses(p, x):
        return jnp.sum(nnx.merge(graph, p)(x) ** 2, axis=1)

    return params, row_losses, numbers(ROWS, 3, 3, 1), {"kernel"}


def equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: Any
        norm: Any
        mlp: Any

        def __init__(self, key):
            self.conv = eqx.nn.Conv1d(2, 3, 2, key=key, dtype=float)
            self.norm = eqx.nn.LayerNorm(3, dtype=float)
            self.mlp = eqx.nn.MLP(3, 2, 4, 1, jax.nn.gelu, key=key, dtype=float)

        def __call__(self, x):
            x = jax.vmap(self.norm)(self.conv(x).T)
            return jnp.sum(self.mlp(x.mean(axis=0)) ** 2)

    params, static = eqx.partition(Net(jax.random.key(0)), eqx.is_inexact_array)

    def row_losses(p, x):
        return jax.vmap(eqx.combine(p, static))(x)

    return params, row_losses, numbers(ROWS, 2, 5), {"weight"}


MODELS = {
    make.__name__: make
    for make in (
        dense,
        layer_norm,
        embedding,
        convolution,
        attention,
        recurrent,
        tied,
        remat,
        ensemble,
        one_row_at_a_time,
        custom_vjp,
        other_uses,
        flax_linen,
        flax_nnx,
        equinox,
    )
}


# Made of what the others hold: by default it is only asked what is cut in them.
OF_OTHERS = ("layer_norm", "flax_linen", "flax_nnx", "equinox")
SOME = some(MODELS, MODELS.keys() - set(OF_OTHERS))


def names(params):
    """The innermost name of each leaf, in order."""
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        words = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        found.append(
            [word for word in words if isinstance(word, str) and word != "value"][-1]
        )
    return found
