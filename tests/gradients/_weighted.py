"""Losses, networks and references of the tests of value_and_weighted_grad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from multiterm_optax import Weighting
from tests import _methods

OLD_JAX = jax.__version_info__ < (0, 11)

WAYS = ["leaf", "stack", "forward"]


def real(values, dtype=None):
    """In NumPy, which compiles nothing, in the dtype that JAX would take."""
    return np.asarray(values, dtype or jnp.result_type(float))


def make_params(dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": real(rng.normal(size=(3, 2)), dtype),
        "rest": [real(0.7, dtype), None],
        "v": real([-1.0, 0.5, 1.0], dtype),
    }


def make_batch(seed=1):
    return real(np.random.default_rng(seed).normal(size=(4, 3)))


def fit(p, x):
    return jnp.sum(jnp.tanh(x @ p["a"] + p["rest"][0]) ** 2)


def size(p, x):
    return jnp.sum(p["a"] ** 2) + p["rest"][0] ** 4


def pull(p, x):
    return jnp.sum(jnp.sin(p["v"] + p["a"][:, 0]) * x[0]) ** 2 + 0.1


SEPARATE = [fit, size, pull]
SEPARATE_GRADS = jax.jit(lambda p, x: [jax.grad(f)(p, x) for f in SEPARATE])


def as_dict(p, x):
    return {"c": pull(p, x), "a": fit(p, x), "b": size(p, x)}  # sorted: a, b, c


def as_stack(p, x):
    return jnp.stack([f(p, x) for f in SEPARATE])


def separate_grads(params, x):
    """K calls of jax.grad."""
    return SEPARATE_GRADS(params, x)


def combination(weights, rows):
    """The weighted sum of K gradients, in NumPy."""
    weights = np.asarray(weights, np.float64)
    total = weights.sum(0) if weights.ndim == 2 else weights
    return jax.tree.map(
        lambda *leaves: sum(
            w * np.asarray(leaf, np.float64)
            for w, leaf in zip(total, leaves, strict=True)
        ),
        *rows,
    )


def dots(rows):
    """The gramian of K gradients, in NumPy float64."""
    flat = np.stack(
        [
            np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves])
            for leaves in map(jax.tree.leaves, rows)
        ]
    )
    return flat @ flat.T


def spy():
    """A weighting that keeps the gramian it is given as its state."""
    return Weighting(
        lambda num_terms: real(np.zeros((num_terms, num_terms))),
        lambda gramian, state, **_: (jnp.ones(len(gramian), float), gramian),
    )


def exported():
    """Builders of every weighting for three terms, by name."""
    names = _methods.factories()
    return {name: functools.partial(_methods.build, name, 3) for name in names}


def network(width, layers, *, abstract=False):
    shapes = {"w": (width, width), "b": (width,)}
    if abstract:
        make = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    else:
        rng = np.random.default_rng(0)
        make = lambda shape: np.asarray(  # noqa: E731
            rng.normal(size=shape) / np.sqrt(width), np.float32
        )
    return [{k: make(s) for k, s in shapes.items()} for _ in range(layers)]


def forward(layers, x):
    for layer in layers:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x


def column_losses(num_terms):
    """K losses, each of one output of the network."""
    return lambda layers, x: jnp.mean(
        (forward(layers, x)[:, :num_terms] - 1) ** 2, axis=0
    )


@functools.cache
def column_problem():
    """The network's parameters, a batch, and the gradients of 64 columns in float64."""
    layers = network(64, 3)
    x = np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), (layers, x))
        rows = jax.jit(jax.jacrev(column_losses(64)))(*wide)
    return layers, x, flat(rows)


def flat(rows):
    """The gradients [K, *p] as one matrix [K, P]."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(rows)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def flops(function, *args):
    """XLA's count before it compiles: within 2 % of the count after."""
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


@jax.custom_vjp
def doubled(w):
    return 2 * w


doubled.defvjp(lambda w: (2 * w, None), lambda _, g: (2 * g,))


def make_heads(heads=3, width=24):
    rng = np.random.default_rng(3)
    return {
        "trunk": network(width, 2),
        "heads": {
            f"h{i}": np.asarray(rng.normal(size=(width, 2)) / 5, np.float32)
            for i in range(heads)
        },
    }


def head_losses(params, x):
    hidden = forward(params["trunk"], x)
    return {k: jnp.mean((hidden @ h - 1) ** 2) for k, h in params["heads"].items()}


SHARED = {
    "prefix": {"trunk": True, "heads": False},
    "callable": lambda params: {"trunk": [True, True], "heads": False},
    "full": {
        "trunk": [{"w": True, "b": True}] * 2,
        "heads": {"h0": False, "h1": False, "h2": False},
    },
}
