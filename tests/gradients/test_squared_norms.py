"""Squared norms of K gradients alone: the gramian's diagonal, for less."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from multiterm_optax import _products
from multiterm_optax.gradients import _gramian
from tests._asserts import assert_close
from tests.gradients._weighted import (
    WAYS,
    as_dict,
    as_stack,
    column_losses,
    compiled,
    doubled,
    make_batch,
    make_params,
    network,
    separate_grads,
)


def finder(losses_fn, way, *, find=_gramian.squared_norms_of, shared=None):
    """The norms, or with ``find`` the gramian, as a function of the parameters."""

    def found(params, *args):
        losses, linear = jax.linearize(lambda p: losses_fn(p, *args), params)
        return find(
            linear,
            (params,),
            losses,
            num_terms=sum(jnp.size(leaf) for leaf in jax.tree.leaves(losses)),
            way=way,
            shared=shared,
            name="test",
        )

    return found


def norms_of(rows, shared=None):
    """In NumPy float64, of K trees."""

    def squared(row):
        leaves = jax.tree.leaves(row)
        flags = [True] * len(leaves) if shared is None else shared
        return sum(
            np.sum(np.asarray(leaf, np.float64) ** 2)
            for leaf, flag in zip(leaves, flags, strict=True)
            if flag
        )

    return np.array([squared(row) for row in rows])


@pytest.mark.parametrize(
    ("losses_fn", "masks"),
    [(as_dict, [None, [True, False, True], [False, True, False]]), (as_stack, [None])],
)
@pytest.mark.usefixtures("x64")
def test_every_way(losses_fn, masks):
    params, x = make_params(), make_batch()
    cases = list(itertools.product([None, *WAYS], masks))
    finders = [finder(losses_fn, way, shared=shared) for way, shared in cases]
    all_found = jax.jit(lambda *args: [find(*args) for find in finders])(params, x)
    rows = separate_grads(params, x)
    for found, (way, shared) in zip(all_found, cases, strict=True):
        expected = norms_of(rows, shared)
        np.testing.assert_allclose(found, expected, rtol=1e-13, err_msg=f"{way}")


@pytest.mark.parametrize("way", WAYS)
def test_many_elements_in_float32(way):
    # One long sum of four million squares would lose half of its digits.
    rng = np.random.default_rng(0)
    w = np.asarray(rng.normal(size=2**22) + 1, np.float32)

    def losses_fn(w):
        return {"squares": 1e3 * jnp.sum(w**2), "cubes": 1e-3 * jnp.sum(w**3)}

    found = jax.jit(finder(losses_fn, way))(w)
    wide = np.asarray(w, np.float64)
    expected = [np.sum((2e-3 * 1.5 * wide**2) ** 2), np.sum((2e3 * wide) ** 2)]
    assert found.dtype == jnp.float32
    # The gradients' own rounding is part of it.
    np.testing.assert_allclose(found, expected, rtol=3e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_wide(dtype):
    # Squares of 300 leave float16, and a bfloat16 stops counting at 256.
    w = np.asarray(np.random.default_rng(0).normal(size=999), dtype)

    def losses_fn(w):
        return jnp.stack([jnp.sum(w * 300), jnp.sum(w * w)])

    finders = [finder(losses_fn, way) for way in WAYS]
    expected = [999 * 300.0**2, np.sum(np.asarray(2 * w, np.float64) ** 2)]
    for found in jax.jit(lambda w: [find(w) for find in finders])(w):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("num_terms", [3, 17])
@pytest.mark.usefixtures("x64")
def test_functions_without_a_forward_derivative(num_terms):
    w, powers = np.linspace(0.5, 1.5, 9), np.arange(1.0, num_terms + 1)
    losses_fn = lambda w: jnp.sum(doubled(w)) * powers  # noqa: E731
    finders = [finder(losses_fn, way) for way in (None, *WAYS)]
    for found in jax.jit(lambda w: [find(w) for find in finders])(w):
        np.testing.assert_allclose(found, 9 * (2 * powers) ** 2, rtol=1e-14)


def test_a_term_without_parameters_has_norm_zero():
    losses_fn = lambda w: {"a": w @ w, "b": jnp.zeros([])}  # noqa: E731
    finders = [finder(losses_fn, way) for way in WAYS]
    ones = np.ones(3, np.float32)
    for found in jax.jit(lambda w: [find(w) for find in finders])(ones):
        np.testing.assert_array_equal(found, [12, 0])


def convolved(w):
    image = jnp.ones((1, 1, 5, 5))
    return jax.lax.conv_general_dilated(image, w.reshape(1, 1, 3, 3), (1, 1), "SAME")


@pytest.mark.parametrize(
    ("body", "loops"), [(jnp.tanh, True), (doubled, True), (convolved, False)]
)
def test_default_way_beyond_sixteen_terms(body, loops):
    powers = np.arange(1, 18, dtype=np.float32)
    find = finder(lambda w: jnp.sum(body(w)) * powers, None)
    program = str(jax.make_jaxpr(find)(np.ones(9, np.float32)))
    assert ("scan[" in program) == loops


# Operations and bytes, of the gramian's; XLA counts the body of a loop once.
COSTS = {"leaf": (0.55, 0.6), "stack": (0.55, 0.85), "forward": (0.7, 0.85)}


@pytest.mark.parametrize("way", WAYS)
def test_cheaper_than_the_gramian(way):
    # Wide layers and few rows: parameters outweigh activations, as in the large.
    layers, x = network(96, 4), np.ones((4, 96), np.float32)
    gramian = finder(column_losses(10), way, find=_gramian.gramian_of)
    norms = finder(column_losses(10), way)
    costs = [compiled(find, layers, x).cost_analysis() for find in (norms, gramian)]
    for what, share in zip(("flops", "bytes accessed"), COSTS[way], strict=True):
        found, whole = (cost[what] for cost in costs)
        assert found <= share * whole, what


@pytest.mark.parametrize("way", WAYS)
def test_gradients_do_not_stand_side_by_side(way):
    layers = network(160, 8, abstract=True)
    x = jax.ShapeDtypeStruct((8, 160), jnp.float32)
    copy = sum(4 * leaf.size for leaf in jax.tree.leaves(layers))
    program = compiled(finder(column_losses(6), way), layers, x)
    held = program.memory_analysis().temp_size_in_bytes / copy
    # Six gradients of one of eight layers are 0.75 copies of the parameters.
    assert held <= {"leaf": 1, "stack": 2, "forward": 0.25}[way]


# Of leaves that are stacked already.


def stacked(terms, dtype):
    rng = np.random.default_rng(terms)
    sizes = 10.0 ** rng.uniform(-3, 3, terms)
    shapes = [(70_001,), (), (3, 5, 128)]
    return [
        np.asarray(
            rng.normal(size=(terms, *s)) * sizes.reshape(-1, *[1] * len(s)), dtype
        )
        for s in shapes
    ]


def by_term(leaves):
    return [[leaf[i] for leaf in leaves] for i in range(len(leaves[0]))]


@pytest.mark.parametrize("terms", [1, 2, 10, 40])
def test_of_stacked_leaves(terms):
    both = [stacked(terms, dtype) for dtype in (jnp.float32, jnp.bfloat16)]

    @jax.jit
    def find(both):
        return [_products.squared_norms(*leaves, num_terms=terms) for leaves in both]

    for found, leaves in zip(find(both), both, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, norms_of(by_term(leaves)), rtol=3e-7)


@pytest.mark.usefixtures("x64")
def test_of_stacked_leaves_in_float64():
    leaves = [*stacked(3, np.float64), np.ones((3, 2), jnp.bfloat16)]
    find = jax.jit(lambda *leaves: _products.squared_norms(*leaves, num_terms=3))
    found = find(*leaves)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, norms_of(by_term(leaves)), rtol=1e-14)


def test_of_a_long_stacked_leaf():
    rng = np.random.default_rng(0)
    leaf = np.asarray(rng.normal(size=(2, 2**22)) + 1, np.float32)
    found = jax.jit(lambda leaf: _products.squared_norms(leaf, num_terms=2))(leaf)
    np.testing.assert_allclose(found, norms_of(by_term([leaf])), rtol=2e-7)


def test_of_no_leaves():
    found = _products.squared_norms(num_terms=3)
    assert_close(found, np.zeros(3), rtol=0)


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P(None, None, "x")], ids=str)
def test_sharded_leaves_stay_where_they_lie(types, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(types,))
    rng = np.random.default_rng(0)
    shapes = [(16, 16, 64), (16, 64)]
    leaves = [rng.normal(size=s).astype(np.float32) for s in shapes]
    with jax.set_mesh(mesh):
        laid = [
            jax.device_put(leaf, NamedSharding(mesh, P(*spec[: leaf.ndim])))
            for leaf in leaves
        ]
        find = jax.jit(lambda *leaves: _products.squared_norms(*leaves, num_terms=16))
        program = find.lower(*laid).compile()
        found = program(*laid)
    np.testing.assert_allclose(found, norms_of(by_term(leaves)), rtol=1e-6)
    # What travels are sums, a few for each term, and no part of a leaf.
    sent = re.findall(
        r"= (.+?) (?:all-|collective-|reduce-)[\w-]+\(", program.as_text()
    )
    sizes = [d for shape in sent for d in re.findall(r"\[([\d,]*)\]", shape)]
    assert sizes
    assert all(np.prod([int(n) for n in d.split(",") if n]) <= 64 for d in sizes), sent


@pytest.mark.parametrize("way", WAYS)
def test_gradients_on_explicit_axes(way):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    w = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)

    def losses_fn(w):
        return {"a": jnp.sum(w**2), "b": 3 * jnp.sum(w)}

    with jax.set_mesh(mesh):
        laid = jax.device_put(w, NamedSharding(mesh, P("x")))
        found = jax.jit(finder(losses_fn, way))(laid)
    expected = [np.sum((2 * w.astype(np.float64)) ** 2), 64 * 9]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
