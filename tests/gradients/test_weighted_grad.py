"""Weights first, then one backward pass: the same gradients, for less."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax
from multiterm_optax import (
    Weighting,
    constant,
    dwa,
    equal,
    inexact_mgda,
    mgda,
    pcgrad,
    reweight,
    sum_terms,
    value_and_term_grads,
    value_and_weighted_grad,
)
from multiterm_optax.gradients import WeightedGradState
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_identical,
    assert_message,
    assert_param_shapes,
    assert_same_signature,
    assert_same_structure,
    assert_single_trace,
    assert_strong_types,
    assert_zero,
)

WAYS = ["leaf", "stack", "forward"]


def make_params(dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.normal(size=(3, 2)), dtype or float),
        "rest": [jnp.asarray(0.7, dtype or float), None],
        "v": jnp.asarray([-1.0, 0.5, 1.0], dtype or float),
    }


def make_batch(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(4, 3)), float)


def fit(p, x):
    return jnp.sum(jnp.tanh(x @ p["a"] + p["rest"][0]) ** 2)


def size(p, x):
    return jnp.sum(p["a"] ** 2) + p["rest"][0] ** 4


def pull(p, x):
    return jnp.sum(jnp.sin(p["v"] + p["a"][:, 0]) * x[0]) ** 2 + 0.1


SEPARATE = [fit, size, pull]
SEPARATE_GRADS = [jax.jit(jax.grad(f)) for f in SEPARATE]


def as_dict(p, x):
    return {"c": pull(p, x), "a": fit(p, x), "b": size(p, x)}  # sorted: a, b, c


def as_stack(p, x):
    return jnp.stack([f(p, x) for f in SEPARATE])


def separate_grads(params, x):
    """K calls of jax.grad."""
    return [grad(params, x) for grad in SEPARATE_GRADS]


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
        lambda num_terms: jnp.zeros((num_terms, num_terms), float),
        lambda gramian, state, **_: (jnp.ones(len(gramian), float), gramian),
    )


# Every exported weighting.

ARGUMENTS = {
    "eps": 1e-3,
    "key": jax.random.key(0),
    "num_terms": 3,
    "steps_per_epoch": 2,
    "weights": np.array([1.0, 2.0, 0.5]),
}


def exported():
    found = {}
    for name, factory in vars(multiterm_optax).items():
        if not inspect.isfunction(factory):
            continue
        signature = inspect.signature(factory)
        if signature.return_annotation not in (Weighting, "Weighting"):
            continue
        required = [p for p, v in signature.parameters.items() if v.default is v.empty]
        found[name] = lambda f=factory, r=required: f(**{p: ARGUMENTS[p] for p in r})
    return found


def test_weightings_are_found():
    assert exported().keys() >= {"equal", "mgda", "pcgrad", "dwa", "inexact_mgda"}


@pytest.mark.parametrize("name", sorted(exported()))
@pytest.mark.usefixtures("x64")
def test_equals_reweight_and_sum_terms(name):
    weighting = exported()[name]()
    weighted_grad = value_and_weighted_grad(as_dict, weighting)
    chain = optax.chain(reweight(weighting, 3), sum_terms())
    update, of_terms = jax.jit(weighted_grad.update), value_and_term_grads(as_dict)

    @jax.jit
    def by_chain(chain_state, params, x):
        losses, grads = of_terms(params, x)
        total, chain_state = chain.update(grads, chain_state, params, losses=losses)
        return losses, total, chain_state

    params = make_params()
    state, chain_state = weighted_grad.init(3), chain.init(params)
    assert_strong_types(state)
    assert_same_structure(state.weights, chain_state[0].weights)
    for step in range(5):
        x = make_batch(step)
        losses, grads, later = update(state, params, x)
        expected, total, chain_state = by_chain(chain_state, params, x)
        assert_close(losses, expected, rtol=1e-14)
        # A weight that is zero at the optimum is known to be nothing, not to digits.
        assert_close(grads, total, rtol=1e-9, atol=1e-15)
        assert_close(later.weights, chain_state[0].weights, rtol=1e-9)
        assert_same_signature(later, state)
        # And against K calls of jax.grad.
        rows = separate_grads(params, x)
        assert_close(grads, combination(later.weights, rows), rtol=1e-13, atol=1e-15)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
        state = later
    assert int(state.count) == 5


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize("losses_fn", [as_dict, as_stack])
@pytest.mark.usefixtures("x64")
def test_every_way_to_the_gramian(way, losses_fn):
    params, x = make_params(), make_batch()
    weighted_grad = value_and_weighted_grad(losses_fn, spy(), gramian=way)
    losses, grads, state = jax.jit(weighted_grad.update)(
        weighted_grad.init(3), params, x
    )
    rows = separate_grads(params, x)
    assert_close(state.weighting, dots(rows), rtol=1e-13)
    assert_close(grads, combination(np.ones(3), rows), rtol=1e-13)
    assert_same_structure(losses, losses_fn(params, x))
    assert_param_shapes(grads, params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("way", WAYS)
def test_losses_of_mixed_dtypes(way):
    w = jnp.array([2.0, -1.0])
    weighted_grad = value_and_weighted_grad(
        lambda w: {"half": (w @ w).astype(jnp.float32), "whole": jnp.sum(w**3)},
        spy(),
        gramian=way,
    )
    losses, grads, state = weighted_grad.update(weighted_grad.init(2), w)
    assert losses["half"].dtype == jnp.float32
    rows = [np.array([4.0, -2.0]), np.array([12.0, 3.0])]
    assert_close(state.weighting, dots(rows), rtol=1e-6)
    assert_close(grads, rows[0] + rows[1], rtol=1e-6)


# Networks: what the gramian is worth in float32, and what it costs.


def network(width, layers, *, abstract=False):
    shapes = {"w": (width, width), "b": (width,)}
    if abstract:
        make = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    else:
        rng = np.random.default_rng(0)
        make = lambda shape: jnp.asarray(  # noqa: E731
            rng.normal(size=shape) / np.sqrt(width), jnp.float32
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


@pytest.mark.parametrize(
    ("way", "num_terms"),
    [("leaf", 10), ("stack", 10), ("stack", 64), ("forward", 10), ("forward", 64)],
)
def test_gramian_in_float32_against_float64(way, num_terms):
    layers = network(64, 4)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 64)), jnp.float32)
    losses_fn = column_losses(num_terms)
    weighted_grad = value_and_weighted_grad(losses_fn, spy(), gramian=way)
    _, _, state = jax.jit(weighted_grad.update)(
        weighted_grad.init(num_terms), layers, x
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (layers, x))
        rows = jax.jit(jax.jacrev(losses_fn))(*wide)
    flat = np.concatenate(
        [np.asarray(r).reshape(num_terms, -1) for r in jax.tree.leaves(rows)], axis=1
    )
    exact = flat @ flat.T
    assert np.max(np.abs(state.weighting - exact)) <= 2e-6 * np.max(exact)
    assert_identical(state.weighting, state.weighting.T)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def flops(function, *args):
    return compiled(function, *args).cost_analysis()["flops"]


def temporaries(function, *args):
    """Bytes of temporaries, in copies of the parameters."""
    copy = sum(4 * leaf.size for leaf in jax.tree.leaves(args[-2]))
    return compiled(function, *args).memory_analysis().temp_size_in_bytes / copy


def abstract_state(weighted_grad, num_terms):
    return jax.eval_shape(lambda: weighted_grad.init(num_terms))


@pytest.mark.parametrize(("num_terms", "way"), [(2, None), (4, None), (64, None)])
def test_temporaries(num_terms, way):
    # Sixteen layers and few rows: parameters outweigh activations, as in the large.
    layers, x = (
        network(160, 16, abstract=True),
        jax.ShapeDtypeStruct((8, 160), jnp.float32),
    )
    losses_fn = column_losses(num_terms)
    weighted_grad = value_and_weighted_grad(losses_fn, mgda(), gramian=way)
    plain = temporaries(
        jax.value_and_grad(lambda *args: losses_fn(*args).sum()), layers, x
    )
    state = abstract_state(weighted_grad, num_terms)
    assert temporaries(weighted_grad.update, state, layers, x) - plain <= 0.3


def test_temporaries_leaf_by_leaf():
    # K gradients of one leaf at a time, in four layouts, never those of all 16.
    layers, x = (
        network(160, 16, abstract=True),
        jax.ShapeDtypeStruct((8, 160), jnp.float32),
    )
    weighted_grad = value_and_weighted_grad(column_losses(12), mgda())
    state = abstract_state(weighted_grad, 12)
    assert temporaries(weighted_grad.update, state, layers, x) <= 4 * 12 / 16


@pytest.mark.parametrize("name", ["equal", "constant", "dwa"])
def test_losses_only_cost_one_backward_pass(name):
    layers, x = network(32, 3), jnp.ones((16, 32))
    weighting = {"equal": equal, "dwa": dwa, "constant": lambda: constant(jnp.ones(4))}
    weighted_grad = value_and_weighted_grad(column_losses(4), weighting[name]())
    found = flops(weighted_grad.update, weighted_grad.init(4), layers, x)

    def weighted_sum(layers, x):
        losses = column_losses(4)(layers, x)
        return jnp.sum(jnp.array([0.1, 0.2, 0.3, 0.4]) * losses), losses

    plain = flops(jax.value_and_grad(weighted_sum, has_aux=True), layers, x)
    assert found <= 1.005 * plain


def test_leaf_shares_the_forward_pass():
    layers, x = network(32, 3), jnp.ones((16, 32))
    losses_fn = column_losses(3)
    once = flops(losses_fn, layers, x)
    both = flops(jax.value_and_grad(lambda *a: losses_fn(*a).sum()), layers, x)
    weighted_grad = value_and_weighted_grad(losses_fn, spy(), gramian="leaf")
    found = flops(weighted_grad.update, weighted_grad.init(3), layers, x)
    copy = sum(leaf.size for leaf in jax.tree.leaves(layers))
    products = 2 * 6 * copy  # six pairs of terms
    assert found <= 1.02 * (once + 4 * (both - once) + products)


# The default way, by what the program holds.


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


@jax.custom_vjp
def doubled(w):
    return 2 * w


doubled.defvjp(lambda w: (2 * w, None), lambda _, g: (2 * g,))


def convolved(w):
    image = jnp.ones((1, 1, 5, 5))
    return jax.lax.conv_general_dilated(image, w.reshape(1, 1, 3, 3), (1, 1), "SAME")


BODIES = {
    "dense": (lambda w: jnp.tanh(jnp.outer(w, w)), True),
    "convolution": (convolved, False),
    "convolution inside": (
        lambda w: jax.checkpoint(lambda v: jax.lax.cond(True, convolved, convolved, v))(
            w
        ),
        False,
    ),
    "custom_vjp": (doubled, False),
    "half precision": (lambda w: (w.astype(jnp.bfloat16) ** 2).astype(w.dtype), False),
}


@pytest.mark.parametrize("body", BODIES)
def test_default_way_beyond_sixteen_terms(body):
    function, loops = BODIES[body]
    powers = jnp.arange(1.0, 18.0)

    def losses_fn(w):
        return jnp.sum(function(w)) * powers + jnp.sum(w) * powers[::-1]

    weighted_grad = value_and_weighted_grad(losses_fn, spy())
    w = jnp.linspace(0.5, 1.5, 9)
    state = weighted_grad.init(17)
    program = jax.make_jaxpr(weighted_grad.update)(state, w)
    assert ("scan" in set(primitives(program.jaxpr))) == loops
    _, _, state = jax.jit(weighted_grad.update)(state, w)
    rows = list(np.asarray(jax.jacrev(losses_fn)(w)))
    assert_close(state.weighting, dots(rows), rtol=1e-5)


@pytest.mark.parametrize("way", ["leaf", "stack"])
def test_custom_vjp(way):
    weighted_grad = value_and_weighted_grad(
        lambda w: [jnp.sum(doubled(w)), jnp.sum(w**2)], spy(), gramian=way
    )
    _, grads, state = weighted_grad.update(weighted_grad.init(2), jnp.array([1.0, 3.0]))
    assert_identical(grads, jnp.array([4.0, 8.0]))
    assert_close(state.weighting, dots([np.array([2, 2]), np.array([2, 6])]), rtol=1e-7)


# Held weights.


def recorded(calls):
    """MGDA that tells the host each time that it runs."""
    inner = mgda()

    def update(gramian, state, **rest):
        jax.debug.callback(lambda: calls.append(1))
        return inner.update(gramian, state, **rest)

    return Weighting(inner.init, update)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.usefixtures("x64")
def test_weights_are_held(every):
    calls = []
    weighted_grad = value_and_weighted_grad(as_dict, recorded(calls), every=every)
    counted = CountedTraces(weighted_grad.update)
    step = jax.jit(counted)
    fresh = value_and_weighted_grad(as_dict, mgda())
    found = jax.jit(fresh.update)
    state, params, held = weighted_grad.init(3), make_params(), None
    for i in range(7):
        x = make_batch(i)
        _, grads, state = step(state, params, x)
        jax.effects_barrier()
        assert len(calls) == i // every + 1
        if i % every == 0:
            held = found(fresh.init(3), params, x)[2].weights
        assert_close(state.weights, held, rtol=1e-9)
        rows = separate_grads(params, x)
        assert_close(grads, combination(held, rows), rtol=1e-9)
        assert int(state.count) == i + 1
    assert_single_trace(counted)


def test_a_step_with_held_weights_computes_no_gramian():
    weighted_grad = value_and_weighted_grad(as_dict, mgda(), every=4)
    program = jax.make_jaxpr(weighted_grad.update)(
        weighted_grad.init(3), make_params(), make_batch()
    )
    (switch,) = [eqn for eqn in program.eqns if eqn.primitive.name == "cond"]
    hold, find = switch.params["branches"]
    assert not hold.jaxpr.eqns
    assert len(find.jaxpr.eqns) > 50


def test_outside_the_branch_there_is_one_backward_pass():
    layers, x = network(32, 3), jnp.ones((16, 32))
    losses_fn = column_losses(4)

    # XLA counts the larger branch: with one that costs nothing the rest is left.
    free = Weighting(
        lambda num_terms: (),
        lambda gramian, state, **_: (jnp.ones(4) / 4, state),
        reads_gramian=False,
    )
    weighted_grad = value_and_weighted_grad(losses_fn, free, every=5)
    found = flops(weighted_grad.update, weighted_grad.init(4), layers, x)
    plain = flops(jax.value_and_grad(lambda *a: losses_fn(*a).mean()), layers, x)
    assert found <= 1.005 * plain


# Trunk and heads.


def make_heads(heads=3, width=24):
    rng = np.random.default_rng(3)
    return {
        "trunk": network(width, 2),
        "heads": {
            f"h{i}": jnp.asarray(rng.normal(size=(width, 2)) / 5, jnp.float32)
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shared", SHARED)
def test_heads_receive_their_own_gradient(shared, way):
    params = make_heads()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 24)), jnp.float32)
    weighted_grad = value_and_weighted_grad(
        head_losses, spy(), gramian=way, shared=SHARED[shared]
    )
    _, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(3), params, x)
    rows = [
        jax.grad(lambda p, n=n: head_losses(p, x)[n])(params)
        for n in ("h0", "h1", "h2")
    ]
    assert_close(state.weighting, dots([row["trunk"] for row in rows]), rtol=2e-6)
    assert_same_structure(grads, params)
    for i, head in enumerate(("h0", "h1", "h2")):
        assert_close(grads["heads"][head], rows[i]["heads"][head], rtol=1e-6)

    fixed = value_and_weighted_grad(
        head_losses, constant([0.5, 0.0, 2.0]), shared=SHARED[shared]
    )
    _, grads, _ = jax.jit(fixed.update)(fixed.init(3), params, x)
    trunk = combination([0.5, 0.0, 2.0], [row["trunk"] for row in rows])
    assert_close(grads["trunk"], trunk, rtol=1e-5)
    for i, head in enumerate(("h0", "h1", "h2")):
        assert_close(grads["heads"][head], rows[i]["heads"][head], rtol=1e-6)


def test_heads_cost_no_second_pass_through_the_trunk():
    params, x = make_heads(), jnp.ones((16, 24))
    trunk = {"trunk": True, "heads": False}
    split = value_and_weighted_grad(head_losses, constant(jnp.ones(3)), shared=trunk)
    whole = value_and_weighted_grad(head_losses, constant(jnp.ones(3)))
    found = flops(split.update, split.init(3), params, x)
    plain = flops(whole.update, whole.init(3), params, x)

    # At most the cotangents of the three heads once more: their elementwise part.
    def of_heads(heads, hidden):
        losses = {k: jnp.mean((hidden @ h - 1) ** 2) for k, h in heads.items()}
        return sum(losses.values())

    heads = flops(jax.grad(of_heads), params["heads"], jnp.ones((16, 24)))
    assert found - plain <= heads
    assert found <= 1.05 * plain


def test_shared_with_several_arguments():
    def losses_fn(u, x, v):
        return jnp.stack([jnp.sum(u * x) * v[0], jnp.sum(u**2) + v[1] ** 2])

    u, x, v = jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0]), jnp.array([2.0, 3.0])
    weighted_grad = value_and_weighted_grad(
        losses_fn, constant([2.0, 3.0]), argnums=(2, 0), shared=(False, True)
    )
    _, (dv, du), _ = weighted_grad.update(weighted_grad.init(2), u, x, v)
    assert_close(du, 2 * 2 * x + 3 * 2 * u, rtol=1e-6)
    assert_close(dv, jnp.array([5.0, 6.0]), rtol=1e-6)


def test_weights_from_the_shared_features():
    # MGDA's upper bound: the gramian of the features' gradients.
    params = make_heads()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 24)), jnp.float32)

    def losses_of(features, heads):
        return {k: jnp.mean((features @ h - 1) ** 2) for k, h in heads.items()}

    weighted_grad = value_and_weighted_grad(
        losses_of, spy(), argnums=(0, 1), shared=(True, False)
    )
    features, pull_back = jax.vjp(lambda trunk: forward(trunk, x), params["trunk"])
    _, (along, _), state = weighted_grad.update(
        weighted_grad.init(3), features, params["heads"]
    )
    rows = [
        jax.grad(lambda z, n=n: losses_of(z, params["heads"])[n])(features)
        for n in ("h0", "h1", "h2")
    ]
    assert_close(state.weighting, dots(rows), rtol=1e-6)
    total = jax.grad(lambda p: sum(head_losses(p, x).values()))(params)
    assert_close(pull_back(along)[0], total["trunk"], rtol=1e-5)


# As a step of training.


@pytest.mark.usefixtures("x64")
def test_one_term_is_value_and_grad():
    params, x = make_params(), make_batch()
    weighted_grad = value_and_weighted_grad(fit, mgda())
    loss, grads, _ = jax.jit(weighted_grad.update)(weighted_grad.init(1), params, x)
    expected = jax.jit(jax.value_and_grad(fit))(params, x)
    assert_close((loss, grads), expected, rtol=1e-14)


@pytest.mark.parametrize("every", [1, 3])
def test_one_trace_donated_and_scanned(every):
    weighted_grad = value_and_weighted_grad(
        as_dict, pcgrad(jax.random.key(1)), every=every
    )
    tx = optax.adam(0.01)

    def train(carry, x):
        params, opt_state, state = carry
        losses, grads, state = weighted_grad.update(state, params, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, state), losses

    def start():
        params = make_params(jnp.float32)
        return params, tx.init(params), weighted_grad.init(3)

    batches = jnp.stack([make_batch(i) for i in range(6)])
    scanned, losses = jax.jit(lambda c: jax.lax.scan(train, c, batches))(start())
    counted = CountedTraces(train)
    step, carry = jax.jit(counted, donate_argnums=0), start()
    for x in batches:
        carry, last = step(carry, x)
    assert_single_trace(counted)
    assert_close(carry[0], scanned[0], rtol=1e-5)
    assert_close(last, jax.tree.map(lambda v: v[-1], losses), rtol=1e-5)


def test_losses_fn_is_traced_once():
    counted = CountedTraces(as_dict)
    weighted_grad = value_and_weighted_grad(lambda p, x: counted(p, x), mgda(), every=2)
    step, state = jax.jit(weighted_grad.update), weighted_grad.init(3)
    for i in range(3):
        _, _, state = step(state, make_params(jnp.float32), make_batch(i))
    assert_single_trace(counted)


@pytest.mark.usefixtures("x64")
def test_aux_and_keyword_arguments():
    def losses_fn(p, x, *, power):
        return {"a": fit(p, x), "b": size(p, x) ** power}, {
            "hidden": 2 * x,
            "n": "text",
        }

    params, x = make_params(), make_batch()
    weighted_grad = value_and_weighted_grad(losses_fn, equal(), has_aux=True)
    (losses, aux), grads, _ = weighted_grad.update(
        weighted_grad.init(2), params, x, power=2
    )
    assert set(losses) == {"a", "b"}
    assert aux["n"] == "text"
    assert_identical(aux["hidden"], 2 * x)
    expected = jax.grad(lambda p: (fit(p, x) + size(p, x) ** 2) / 2)(params)
    assert_close(grads, expected, rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_weights_are_constants_to_a_derivative():
    # Through the weights there is no derivative, only through J^T w.
    x = make_batch()
    weighted_grad = value_and_weighted_grad(as_dict, mgda())
    params = make_params()
    direction = jax.tree.map(jnp.ones_like, params)
    update = jax.jit(weighted_grad.update)
    weights = update(weighted_grad.init(3), params, x)[2].weights

    def found(p):
        return update(weighted_grad.init(3), p, x)[1]

    def expected(p):
        losses = as_stack(p, x)
        return jnp.dot(weights, losses)

    tangent = jax.jvp(found, (params,), (direction,))[1]
    reference = jax.jvp(jax.grad(expected), (params,), (direction,))[1]
    assert_close(tangent, reference, rtol=1e-9)
    # In reverse, too, in spite of the solver's loop.
    inner = jax.grad(lambda p: optax.tree.vdot(found(p), direction))(params)
    assert_close(inner, reference, rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_keep_the_dtype_of_the_parameters(dtype):
    params = make_params(dtype)

    def losses_fn(p, x):
        return as_stack(jax.tree.map(lambda v: v.astype(jnp.float32), p), x)

    weighted_grad = value_and_weighted_grad(losses_fn, mgda())
    x = make_batch().astype(jnp.float32)
    _, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(3), params, x)
    assert_param_shapes(grads, params)
    assert state.weights.dtype == jnp.float32
    wide = jax.tree.map(lambda v: v.astype(jnp.float32), params)
    expected = combination(state.weights, separate_grads(wide, x))
    assert_close(grads, expected, rtol=2 * float(jnp.finfo(dtype).eps))


def test_a_step_that_is_not_ready_has_zero_gradients():
    weighted_grad = value_and_weighted_grad(as_dict, inexact_mgda(eps=1e6))
    params, x = make_params(jnp.float32), make_batch()
    _, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(3), params, x)
    assert not bool(state.weighting.ready)
    assert_zero(grads)
    assert_zero(state.weights)
    tx = optax.transforms.conditionally_transform(
        optax.adam(0.1), lambda step, ready: ready, forward_extra_args=True
    )
    before = tx.init(params)
    updates, after = tx.update(grads, before, params, ready=state.weighting.ready)
    assert_zero(updates)
    assert_identical(after.inner_state, before.inner_state)


def test_a_mixing_matrix_in_the_state():
    weighted_grad = value_and_weighted_grad(as_dict, pcgrad(jax.random.key(0)))
    assert_identical(weighted_grad.init(3).weights, jnp.eye(3))
    assert_identical(
        value_and_weighted_grad(as_dict, mgda()).init(3).weights, jnp.ones(3)
    )


# Terms that are absent.


def known_losses(p, x, known):
    """The three losses, NaN where they are not known; that is safe to differentiate."""
    return jnp.where(known, as_stack(p, x), jnp.nan)


def absent_run(weighting, masks, **options):
    """Gradients and states of some steps, jitted, traced once."""
    weighted_grad = value_and_weighted_grad(known_losses, weighting, **options)
    counted = CountedTraces(
        lambda s, known, *args: weighted_grad.update(s, *args, known, present=known)
    )
    step, state, history = jax.jit(counted), weighted_grad.init(3), []
    for mask in masks:
        mask = jnp.asarray(mask, bool)
        losses, grads, state = step(state, mask, make_params(), make_batch())
        assert_identical(jnp.isnan(losses), ~mask)
        history.append((grads, state))
    assert_single_trace(counted)
    return history


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("mgda", "leaf"),
        ("mgda", "stack"),
        ("mgda", "forward"),
        ("pcgrad", None),
        ("dwa", None),
        ("equal", None),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_step_without_a_term_is_that_of_the_smaller_problem(name, way):
    at, mask = [0, 2], [True, False, True]
    history = absent_run(exported()[name](), [mask] * 3, gramian=way)
    fewer = value_and_weighted_grad(
        lambda p, x: jnp.stack([SEPARATE[i](p, x) for i in at]), exported()[name]()
    )
    step, state = jax.jit(fewer.update), fewer.init(2)
    for grads, whole_state in history:
        _, expected, state = step(state, make_params(), make_batch())
        assert_close(grads, expected, rtol=1e-9, atol=1e-15)
        within = np.ix_(*[at] * state.weights.ndim)
        assert_close(whole_state.weights[within], state.weights, rtol=1e-9)
        assert_zero(whole_state.weights[1])


@pytest.mark.usefixtures("x64")
def test_held_weights_of_absent_terms_are_not_used_and_not_lost():
    masks = [[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0]]
    used = [[1, 2, 0], [1, 2, 0], [1, 2, 3], [0, 0, 3], [1, 0, 3], [0, 2, 0]]
    held = [[1, 2, 0], [1, 2, 0], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    rows = separate_grads(make_params(), make_batch())
    history = absent_run(constant([1.0, 2.0, 3.0]), masks, every=2)
    for (grads, state), now, kept in zip(history, used, held, strict=True):
        assert_close(grads, combination(now, rows), rtol=1e-12)
        assert_identical(state.weights, jnp.asarray(kept, float))


def test_a_held_mixing_matrix_without_a_term():
    masks = [[1, 1, 0], [1, 1, 1], [0, 1, 0]]
    history = absent_run(pcgrad(jax.random.key(0)), masks, every=3)
    rows = separate_grads(make_params(), make_batch())
    for (grads, state), mask in zip(history, masks, strict=True):
        assert_zero(state.weights[2])
        assert_zero(state.weights[:, 2])
        mixed = np.where(np.outer(mask, mask), state.weights, 0)
        assert_close(grads, combination(mixed, rows), rtol=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_no_term_at_all(every):
    for grads, state in absent_run(dwa(), [[0, 0, 0]] * 2, every=every):
        assert_zero((grads, state.weights))
        assert_zero(state.weighting)
    grads, state = absent_run(inexact_mgda(1e-3), [[0, 0, 0]], every=every)[0]
    assert_zero((grads, state.weights))
    assert not bool(state.weighting.ready)


def test_weights_do_not_depend_on_what_an_absent_term_computes():
    # As NaN labels make it: its own derivative is NaN. One backward pass for all terms
    # cannot keep that out of the gradients, but labels that are replaced can.
    w, x = jnp.array([1.0, -2.0]), jnp.array([3.0, 1.0])
    known = jnp.array([True, False, True])
    labels = jnp.array([1.0, jnp.nan, -1.0])

    def losses_fn(w, labels):
        return [jnp.sum((w * x - label) ** 2) for label in labels]

    weighted_grad = value_and_weighted_grad(losses_fn, mgda())
    update, state = jax.jit(weighted_grad.update), weighted_grad.init(3)
    _, _, spoiled = update(state, w, labels, present=known)
    replaced = jnp.where(known, labels, 0.0)
    _, grads, expected = update(state, w, replaced, present=known)
    assert_identical(spoiled, expected)
    rows = [2 * x * (w * x - label) for label in (1.0, -1.0)]
    weights = expected.weights[jnp.array([0, 2])]
    assert_close(grads, combination(weights, rows), rtol=1e-6)


def test_the_head_of_an_absent_term_stays():
    params, x = make_heads(), jnp.ones((4, 24))
    weighted_grad = value_and_weighted_grad(
        head_losses, constant([1.0, 2.0, 3.0]), shared=SHARED["prefix"]
    )
    present = jnp.array([True, False, True])
    _, grads, _ = weighted_grad.update(
        weighted_grad.init(3), params, x, present=present
    )
    rows = [
        jax.grad(lambda p, n=n: head_losses(p, x)[n])(params)
        for n in ("h0", "h1", "h2")
    ]
    assert_zero(grads["heads"]["h1"])
    assert_close(grads["heads"]["h0"], rows[0]["heads"]["h0"], rtol=1e-5)
    trunk = combination([1.0, 0.0, 3.0], [row["trunk"] for row in rows])
    assert_close(grads["trunk"], trunk, rtol=1e-5)


def test_a_weighting_that_does_not_know_of_absent_terms():
    _, state = absent_run(spy(), [[1, 0, 1]])[0]
    assert_identical(state.weights, jnp.array([1.0, 0.0, 1.0]))
    assert_zero(state.weighting[1])


# Bad input.

W = jnp.ones(3)


def made(**options):
    weighting = options.pop("weighting", equal())
    return value_and_weighted_grad(lambda w: [jnp.sum(w), w[0]], weighting, **options)


def updated(*args, num_terms=2, present=None, **options):
    weighted_grad = made(**options)
    return weighted_grad.update(weighted_grad.init(num_terms), *args, present=present)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: made(weighting=0.5), TypeError, ["weighting", "mgda()", "0.5"]),
        (lambda: made(weighting=mgda), TypeError, ["weighting", "function mgda"]),
        (lambda: made(every=0), ValueError, ["every", "at least 1", "found 0"]),
        (lambda: made(every=2.0), TypeError, ["every", "static Python int", "2.0"]),
        (lambda: made(every=True), TypeError, ["every", "static Python int", "True"]),
        (lambda: made(gramian="loop"), ValueError, ["gramian", "'leaf'", "'loop'"]),
        (lambda: made().init(0), ValueError, ["num_terms", "at least 1", "0"]),
        (
            lambda: updated(W, num_terms=3),
            ValueError,
            ["losses_fn", "num_terms=3", "found 2"],
        ),
        (lambda: made().update(W), TypeError, ["init(num_terms)", "state", "found"]),
        (lambda: made().update(None, W), TypeError, ["init(num_terms)", "NoneType"]),
        (lambda: updated(), ValueError, ["argnums=0", "0 positional"]),
        (lambda: updated(jnp.arange(3)), TypeError, ["argument 0", "int32"]),
        (lambda: updated(W, has_aux=True), TypeError, ["has_aux", "(losses, aux)"]),
        (
            lambda: updated(W, shared={"w": True}),
            ValueError,
            ["shared", "structure", "'w'"],
        ),
        (lambda: updated(W, shared=False), ValueError, ["shared", "at least one"]),
        (
            lambda: updated(W, present=jnp.ones(3, bool)),
            ValueError,
            ["present", "shape (2,)", "(3,)"],
        ),
        (
            lambda: updated(W, present=jnp.ones(2)),
            ValueError,
            ["present", "booleans", "float32"],
        ),
        (
            lambda: updated(W, shared="trunk"),
            TypeError,
            ["shared", "booleans", "trunk"],
        ),
        (
            lambda: updated(W, shared=lambda w: 1),
            TypeError,
            ["shared", "booleans", "found 1"],
        ),
        (
            lambda: value_and_weighted_grad(
                lambda w: [jnp.sum(doubled(w))], mgda(), gramian="forward"
            ).update(value_and_weighted_grad(made, mgda()).init(1), W),
            ValueError,
            ["gramian='forward'", "custom_vjp", "'leaf'"],
        ),
    ],
)
@pytest.mark.usefixtures("own_errors")
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert_message(caught.value, "value_and_weighted_grad:", *words)


def test_state_is_named():
    state = made().init(2)
    assert isinstance(state, WeightedGradState)
    assert state._fields == ("weights", "weighting", "count")


def test_the_page_runs():
    page = Path(__file__).parents[2] / "docs" / "weighted_grad.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    assert set(namespace["losses"]) == {"y", "z"}
