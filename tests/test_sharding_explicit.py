"""Explicit axes, and shard_map: types carry the sharding through each derivative."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import multiterm_optax as mt
from tests._runs import first_step
from tests._sharded import (
    METHODS,
    K,
    assert_lies,
    by_hand,
    gathered,
    lay,
    mesh_of,
    rows,
    start,
)
from tests.references.min_norm import min_norm_point


@pytest.mark.parametrize("passes", ["vmap", "loop"])
def test_batched_passes_on_explicit_axes(passes):
    mesh = mesh_of("explicit")
    expected_losses, expected = by_hand()
    with jax.set_mesh(mesh):
        batch, params = lay(rows(), mesh, P("x")), lay(start(), mesh, P("x"))
        grad_fn = mt.value_and_term_grads(gathered, passes=passes)
        losses, grads = jax.jit(grad_fn)(params, batch)
    assert_lies(grads, start(), mesh, P("x"))
    for name, leaf in grads.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, expected_losses[name], rtol=1e-5)


@pytest.mark.parametrize(
    "gramian", [None, "leaf", pytest.param("stack", marks=pytest.mark.slow), "forward"]
)
def test_weights_first_on_explicit_axes(gramian):
    mesh = mesh_of("explicit")
    _, each = by_hand()
    flat = np.concatenate([leaf.reshape(K, -1) for leaf in each.values()], axis=1)
    _, weights = min_norm_point(flat)
    with jax.set_mesh(mesh):
        batch, params = lay(rows(), mesh, P("x")), lay(start(), mesh, P("x"))
        many = mt.value_and_weighted_grad(gathered, mt.mgda(), gramian=gramian)
        _, grads, state = jax.jit(many.update)(many.init(K), params, batch)
    assert weights.min() > 0.01  # both have a say
    np.testing.assert_allclose(state.weights, weights, atol=1e-4)
    assert_lies(grads, start(), mesh, P("x"))
    for name, leaf in grads.items():
        expected = np.tensordot(weights, each[name], 1)
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", [P(None, "x"), P(None, None, "x"), P("x")], ids=str)
def test_gramian_of_many_terms_on_explicit_axes(spec):
    terms = 16
    rng = np.random.default_rng(0)
    grads = [
        rng.normal(size=(terms, *shape)).astype(np.float32)
        for shape in ((16, 8), (24,))
    ]
    flat = np.concatenate([g.reshape(terms, -1) for g in grads], axis=1)
    expected = flat.astype(np.float64) @ flat.T
    mesh = mesh_of("explicit")
    with jax.set_mesh(mesh):
        laid = [
            jax.device_put(g, NamedSharding(mesh, P(*spec[: g.ndim]))) for g in grads
        ]
        found = jax.jit(mt.metrics.gramian)(laid)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


WHOLE, SPLIT = P(None), P(None, "x")


@pytest.mark.parametrize(
    ("method", "specs"),
    [
        ("mtadam", (SPLIT,)),
        ("adatask_adam", (SPLIT,)),
        ("weighted mgda", (SPLIT,)),
        pytest.param("mtadam", (WHOLE,), marks=pytest.mark.slow),
        pytest.param("adatask_adam", (WHOLE,), marks=pytest.mark.slow),
        pytest.param("weighted mgda", (WHOLE,), marks=pytest.mark.slow),
    ],
)
def test_absent_terms_on_explicit_axes(method, specs):
    tx = METHODS[method]()
    params = {"w": np.ones((16, 4), np.float32)}
    rng = np.random.default_rng(0)
    grads = {"w": rng.normal(size=(K, 16, 4)).astype(np.float32)}
    grads["w"][1] = np.nan
    present = np.array([True, False])

    def update(grads, state, params):
        return tx.update(grads, state, params, present=present)

    expected, _ = first_step(tx, grads, params, present=present)
    assert np.all(np.isfinite(expected["w"]))
    mesh = mesh_of("explicit")
    for spec in specs:
        with jax.set_mesh(mesh):
            laid, where = lay(grads, mesh, spec), lay(params, mesh, P(*spec[1:]))
            updates, _ = jax.jit(update)(laid, tx.init(where), where)
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5, atol=1e-7)


def inside_shard_map(name):
    """Weights of a batch of gramians, in shard_map and without."""
    weighting = {
        "mgda": mt.mgda,
        "cagrad": mt.cagrad,
        "upgrad": mt.upgrad,
        "pcgrad": lambda: mt.pcgrad(jax.random.key(0)),
        "fair_grad": mt.fair_grad,
        "aligned_mtl": mt.aligned_mtl,
    }[name]()

    def weigh(gramians):
        one = lambda gramian: weighting.update(gramian, weighting.init(4))[0]  # noqa: E731
        return jax.vmap(one)(gramians)

    mesh = mesh_of("auto")
    spread = jax.shard_map(weigh, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    return jax.jit(spread), jax.jit(weigh)


SOLVERS = ("mgda", "pcgrad", "cagrad", "upgrad", "fair_grad", "aligned_mtl")


@pytest.mark.parametrize("name", SOLVERS)
def test_loops_of_solvers_keep_their_types_inside_shard_map(name):
    # What varies over devices is part of a type there, which a loop must not change.
    gramians = jax.ShapeDtypeStruct((8, 4, 4), np.float32)
    # PCGrad's weights are a matrix.
    expected = (8, 4, 4) if name == "pcgrad" else (8, 4)
    assert inside_shard_map(name)[0].eval_shape(gramians).shape == expected


@pytest.mark.parametrize(
    "name",
    [
        "mgda",
        pytest.param("pcgrad", marks=pytest.mark.slow),
        pytest.param("cagrad", marks=pytest.mark.slow),
        pytest.param("upgrad", marks=pytest.mark.slow),
    ],
)
def test_gramian_weightings_inside_shard_map(name):
    """Each device its own problem, as in a step that is written by hand."""
    rows = np.random.default_rng(0).normal(size=(8, 4, 9)).astype(np.float32)
    gramians = np.einsum("dip,djp->dij", rows, rows)
    spread, weigh = inside_shard_map(name)
    if name == "mgda":  # whose weights are known
        expected = np.stack([min_norm_point(row)[1] for row in rows])
    else:
        expected = weigh(gramians)
    np.testing.assert_allclose(spread(gramians), expected, atol=1e-5)
