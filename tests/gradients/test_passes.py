"""How K backward passes run by default, and that batched ones are right."""

import contextlib
import functools

import jax
import jax.lib
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import Weighting, term_grads, value_and_weighted_grad
from multiterm_optax.gradients import _passes
from tests._asserts import assert_close

WIDTH = 32


def normed(x, axis=-1):
    centred = x - x.mean(axis, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis, keepdims=True) + 1e-5)


def dense(params, x):
    return x + normed(jnp.tanh(x @ params["in"]) @ params["out"])


def attention(params, x):
    """Attention with four heads."""
    batch, length, width = x.shape
    split = (x @ params["in"]).reshape(batch, length, 4, -1).swapaxes(1, 2)
    mixed = jax.nn.softmax(split @ split.swapaxes(2, 3)) @ split
    mixed = mixed.swapaxes(1, 2).reshape(batch, length, width)
    return x + normed(mixed @ params["out"])


def recurrent(params, x):
    def step(hidden, part):
        hidden = jnp.tanh(hidden @ params["in"] + part @ params["out"])
        return hidden, hidden

    return jax.lax.scan(step, x[:, 0], x.swapaxes(0, 1))[1].swapaxes(0, 1)


def convolved(params, x):
    kernel = params["kernel"]
    layout = ("NWC", "WIO", "NWC")
    return normed(
        jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=layout)
    )


def losses_fn(params, x, model):
    return jnp.square(model(params, x).mean(axis=1) @ params["head"] - 1).mean(axis=0)


def problem(num_terms):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = {name: normal(WIDTH, WIDTH) / 6 for name in ("in", "out")}
    params["head"] = normal(WIDTH, num_terms) / 4
    params["kernel"] = normal(3, WIDTH, WIDTH) / 10
    return params, normal(16, 32, WIDTH)


# --- what is chosen ------------------------------------------------------------------


def chosen(model, num_terms, mesh=None, **options):
    params, x = problem(num_terms)
    loss = functools.partial(losses_fn, x=x, model=model)
    with mesh or contextlib.nullcontext():
        return chosen_for(loss, params, num_terms, **options)


def chosen_for(loss, params, num_terms, **options):
    found = []

    def record(params):
        _, linear = jax.linearize(loss, params)
        found.append(_passes.choose(linear, (params,), num_terms, **options))

    jax.eval_shape(record, params)
    return found[0]


@pytest.mark.parametrize(
    ("model", "few", "many"),
    [
        (dense, "unroll", "loop"),
        (recurrent, "vmap", "batches"),
        (attention, "vmap", "batches"),
        (convolved, "unroll", "vmap"),
    ],
)
def test_choice_on_cpu(monkeypatch, model, few, many):
    monkeypatch.setattr(jax.lib, "__version__", "0.11.0")
    assert (chosen(model, 16), chosen(model, 17)) == (few, many)
    assert chosen(model, 2) == ("unroll" if model is recurrent else few)
    kept = "batches" if model is attention else "vmap"
    assert chosen(model, 17, keeps_all=True) == kept
    # A jaxlib that gets batches wrong is given none.
    monkeypatch.setattr(jax.lib, "__version__", "0.10.2")
    assert chosen(model, 16) == "unroll"
    without = "unroll" if model is convolved else "loop"
    assert chosen(model, 17) == chosen(model, 17, keeps_all=True) == without


@pytest.mark.parametrize("model", [dense, attention])
def test_accelerators_batch_but_for_a_mesh(monkeypatch, model):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.lib, "__version__", "0.10.2")
    assert chosen(model, 2) == chosen(model, 17) == "vmap"
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    assert chosen(model, 2, jax.sharding.use_abstract_mesh(mesh)) == "unroll"
    assert chosen(model, 17, jax.sharding.use_abstract_mesh(mesh)) == "vmap"


@pytest.mark.parametrize(
    ("backend", "num_terms"),
    [("cpu", 17), ("gpu", 2)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [("cpu", 2), ("gpu", 17)]
    ],
)
def test_heads_are_unrolled_and_what_shares_a_layer_is_not(
    monkeypatch, backend, num_terms
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax.lib, "__version__", "0.11.0")
    weights, x = np.ones((num_terms, WIDTH, 3)), np.ones((2, 5, WIDTH))

    def heads(z):  # with attention, which would be batched
        for head in weights:
            queries = jax.nn.gelu(z @ head)
            yield jnp.sum(jax.nn.softmax(queries @ queries.swapaxes(1, 2)) ** 2)

    assert chosen_for(lambda z: jnp.stack(list(heads(z))), x, num_terms) == "unroll"
    named = chosen_for(lambda z: dict(enumerate(heads(z))), x, num_terms)
    assert named == "unroll"
    jitted = jax.jit(lambda z: jnp.stack(list(heads(z))))
    assert chosen_for(jitted, x, num_terms) == "unroll"

    def behind_layers(z):
        for _ in range(50):
            z = jnp.tanh(z)
        return jnp.stack(list(heads(z)))

    expected = "batches" if (backend, num_terms) == ("cpu", 17) else "vmap"
    assert chosen_for(behind_layers, x, num_terms) == expected


# --- what comes out ------------------------------------------------------------------


def test_a_jitted_loss_may_be_a_constant():
    losses = jax.jit(lambda p: {"a": jnp.sum(p), "b": jnp.float32(1)})
    assert_close(term_grads(losses)(np.ones(2)), np.array([[1, 1], [0, 0]]), rtol=0)


@functools.cache
def last_alone(model, num_terms):
    """The gradient of the last term, from ``jax.grad``."""
    params, x = problem(num_terms)
    return jax.jit(jax.grad(lambda p: losses_fn(p, x, model)[-1]))(params)


# In a batch jaxlib 0.10 gets the later terms of these programs wrong, by 2% and more.
@pytest.mark.parametrize(
    ("model", "num_terms", "passes"),
    [
        (dense, 17, None),
        (dense, 17, "vmap"),
        (convolved, 17, None),  # in a batch, where it is right
        (attention, 10, None),
        (attention, 20, None),  # in a loop over batches
    ],
)
def test_last_of_many_terms(model, num_terms, passes):
    if passes == "vmap" and not _passes.batches_are_right():
        pytest.skip("this jaxlib computes batched passes wrongly")
    params, x = problem(num_terms)
    found = jax.jit(term_grads(losses_fn, passes=passes), static_argnums=2)
    last = jax.tree.map(lambda leaf: np.asarray(leaf)[-1], found(params, x, model))
    assert_close(last, last_alone(model, num_terms), rtol=1e-4)


def test_batches_in_a_loop_are_small(monkeypatch):
    monkeypatch.setattr(jax.lib, "__version__", "0.11.0")
    params, x = problem(20)
    grads = functools.partial(term_grads(losses_fn), x=x, model=attention)
    loops = [
        eqn.params["length"]
        for eqn in jax.make_jaxpr(grads)(params).eqns
        if eqn.primitive.name == "scan"
    ]
    assert loops == [2]  # of seven passes; then the other six


def read_gramian():
    """A weighting that keeps the gramian as its state."""
    return Weighting(
        lambda num_terms: jnp.zeros((num_terms, num_terms)),
        lambda gramian, state, **_: (jnp.ones(len(gramian)), gramian),
    )


@pytest.mark.parametrize(("model", "num_terms"), [(attention, 10), (dense, 17)])
def test_gramian_of_many_terms(model, num_terms):
    params, x = problem(num_terms)
    pair = value_and_weighted_grad(
        functools.partial(losses_fn, model=model), read_gramian()
    )
    _, _, state = jax.jit(pair.update)(pair.init(num_terms), params, x)
    last = jax.tree.leaves(last_alone(model, num_terms))
    squared = sum(np.sum(np.square(np.float64(leaf))) for leaf in last)
    found = np.asarray(state.weighting)[-1, -1]
    np.testing.assert_allclose(found, squared, rtol=1e-4)
