"""Eight virtual devices: results, where the state lies, and terms over devices."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import multiterm_optax as mt
from tests._asserts import CountedTraces, assert_single_trace
from tests._runs import first_step
from tests._sharded import (
    DEVICES,
    LAYOUTS,
    METHODS,
    assert_lies,
    collectives,
    gathered,
    lay,
    losses_fn,
    mesh_of,
    rows,
    size,
    start,
    training_step,
)
from tests.test_docs import DOCS, python_blocks, run


@pytest.fixture(scope="module")
def on_one_device():
    """Parameters and losses after three steps of each method, computed when asked."""
    found = {}

    def train(method):
        if method not in found:
            tx = METHODS[method]()
            step = jax.jit(training_step(tx))
            params, batch = start(), rows()
            state = jax.jit(tx.init)(params)
            for _ in range(3):
                params, state, losses = step(params, state, batch)
            found[method] = jax.device_get((params, losses))
        return found[method]

    return train


# By default tests/optimizers/test_battery_sharded.py traces all methods on explicit
# axes, and with absent terms test_sharding_explicit.py compares three.
# The mixing of pcgrad is "reweight mixing" below, and its draws are those of a key, as
# grad_drop's are. The balance of metabalance is the one of mtadam, the state of
# adatask_adam and ladatask_rmsprop like that of mtadam, adaptive_mgda weights as MGDA
# does, and the weights of softadapt are laid over devices below.
REPEATS = {"pcgrad", "metabalance", "weighted softadapt"}
REPEATS |= {"adatask_adam", "ladatask_rmsprop", "adaptive_mgda"}
RUNS = [
    *(
        pytest.param(
            *("auto", "fsdp", method),
            marks=pytest.mark.slow if method in REPEATS else (),
        )
        for method in METHODS
    ),
    *(
        pytest.param(*("explicit", "data parallel", method), marks=pytest.mark.slow)
        for method in METHODS
    ),
    pytest.param("auto", "data parallel", "mtadam", marks=pytest.mark.slow),
    ("explicit", "fsdp", "mtadam"),
    pytest.param("explicit", "fsdp", "adaptive_mgda", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("types", "layout", "method"), RUNS)
def test_training_is_that_of_one_device(types, layout, method, on_one_device):
    mesh, spec = mesh_of(types), LAYOUTS[layout]
    tx = METHODS[method]()
    gathers = types == "explicit" and layout == "fsdp"
    counted = CountedTraces(training_step(tx, gathered if gathers else losses_fn))
    with jax.set_mesh(mesh):
        params = lay(start(), mesh, spec)
        state = tx.init(params)
        assert_lies(state, start(), mesh, spec)
        batch = lay(rows(), mesh, P("x"))
        step = jax.jit(lambda *args: counted(*args), donate_argnums=(0, 1))
        for _ in range(3):
            params, state, losses = step(params, state, batch)
            assert_lies((params, state), start(), mesh, spec)
    assert_single_trace(counted)
    expected, expected_losses = on_one_device(method)
    for name, leaf in params.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, expected_losses[name], rtol=1e-4)


@pytest.mark.parametrize("method", ["mtadam", "adatask_adam", "weighted mgda"])
def test_compiled_init_inherits_the_sharding_on_explicit_axes(method):
    mesh = mesh_of("explicit")
    with jax.set_mesh(mesh):
        state = jax.jit(METHODS[method]().init)(lay(start(), mesh, P("x")))
    assert_lies(state, start(), mesh, P("x"))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("method", ["mtadam", "adatask_adam", "adaptive_mgda"])
def test_compiled_init_lays_the_arrays_of_all_terms_on_automatic_axes(method, given):
    # Here an init of Optax alone returns zeros that lie on one device.
    mesh = mesh_of("auto")
    with jax.set_mesh(mesh) if given else nullcontext():
        state = jax.jit(METHODS[method]().init)(lay(start(), mesh, P("x")))
    per_term = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 3]
    assert per_term
    assert_lies(per_term, start(), mesh, P("x"))


# Terms over devices: one gradient on each.


def by_gramian():
    """A weighting that reads the gramian: 1 / |g_i|^2 or so."""
    return mt.Weighting(
        init=lambda num_terms: (),
        update=lambda gramian, state, **_: (1 / jnp.sum(gramian**2, axis=1), state),
    )


def mixing():
    """A weighting that mixes: each term gives its gradient to the next, too."""
    matrix = np.eye(DEVICES, dtype=np.float32)
    matrix += 0.5 * np.eye(DEVICES, k=1, dtype=np.float32)
    return mt.Weighting(
        init=lambda num_terms: (),
        update=lambda gramian, state, **_: (jnp.asarray(matrix), state),
        reads_gramian=False,
    )


STAGES = {
    "balance_by_norm": lambda: mt.balance_by_norm(DEVICES),
    "inverse_dirichlet": lambda: mt.inverse_dirichlet(DEVICES),
    "output_balance": lambda: mt.output_balance(DEVICES),
    "reweight gramian": lambda: mt.reweight(by_gramian(), DEVICES),
    "reweight mgda": lambda: mt.reweight(mt.mgda(), DEVICES),
    "reweight softadapt": lambda: mt.reweight(mt.softadapt(), DEVICES),
    "reweight mixing": lambda: mt.reweight(mixing(), DEVICES),
    # It has a counter for each term, too, which no parameter lays out.
    "per_term adam": lambda: mt.per_term(optax.scale_by_adam(), DEVICES),
    "scale_by_max_adam": lambda: mt.scale_by_max_adam(DEVICES),
    "sum_terms": lambda: mt.sum_terms(),
    "weighted": lambda: mt.weighted(mt.softadapt(), optax.sgd(1e-2), DEVICES),
}
# The page of many devices, which is run below, has it on explicit axes.
PAGE = ("reweight mgda",)
# On automatic axes these gather the terms, and MGDA's solver is laid over devices, too.
GATHER = ("reweight gramian", "reweight mgda", "reweight mixing")
# One stage that keeps the terms and one that removes them; the others go the same way.
AUTO = ("balance_by_norm", "scale_by_max_adam")


@pytest.mark.parametrize(
    ("stage", "types"),
    [
        *(
            pytest.param(
                *(stage, "explicit"), marks=pytest.mark.slow if stage in PAGE else ()
            )
            for stage in STAGES
        ),
        *(
            pytest.param(
                *(stage, "auto"), marks=() if stage in AUTO else pytest.mark.slow
            )
            for stage in STAGES
            if stage not in GATHER
        ),
    ],
)
def test_terms_over_devices(stage, types):
    rng = np.random.default_rng(0)
    params = {"w": np.zeros((32, 16), np.float32), "b": np.zeros(16, np.float32)}
    grads = {
        name: rng.normal(size=(DEVICES, *leaf.shape)).astype(np.float32)
        for name, leaf in params.items()
    }
    losses = np.arange(1, DEVICES + 1, dtype=np.float32)
    tx = STAGES[stage]()

    def update(grads, state, params):
        return tx.update(grads, state, params, losses=losses)

    expected, _ = first_step(tx, grads, params, losses=losses)
    mesh = mesh_of(types, "terms")

    with jax.set_mesh(mesh):
        laid, params = lay(grads, mesh, P("terms")), lay(params, mesh, P())
        state = tx.init(params)
        program = jax.jit(update).lower(laid, state, params).compile()
        updates, _ = program(laid, state, params)
    for name, leaf in updates.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-6)
        if leaf.ndim == grads[name].ndim:
            # K -> K: each term stays where it was.
            assert leaf.sharding.is_equivalent_to(
                NamedSharding(mesh, P("terms")), leaf.ndim
            )
    whole = size(grads)
    # Nothing but vectors of K numbers for each leaf is gathered.
    assert sum(collectives(program, "all-gather")) <= 0.1 * whole
    if types == "explicit":
        # A sum sends one gradient, a gramian an eighth of each device's.
        assert sum(collectives(program, "all-reduce")) <= 2.2 * whole / DEVICES
        assert sum(collectives(program, "collective-permute")) == 0


def test_the_page_on_many_devices_is_right():
    names = run(python_blocks(DOCS / "many_devices.md"), "many_devices.md")
    assert names["nu"].shape == (2, 8, 32)
    assert names["nu"].sharding.spec == P(None, "data")
    assert names["grads"]["w"].shape == (DEVICES, 32)
    assert names["updates"]["w"].shape == (32,)
    where = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(names["target"])}
    assert str(P(None, "data")) in where
    assert all(np.isfinite(loss) for loss in names["losses"].values())
