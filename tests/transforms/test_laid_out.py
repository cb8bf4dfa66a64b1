"""Methods with a state for each term on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import multiterm_optax as mt
from tests._params import some

K = 2
STAGES = {
    "moco": lambda: mt.moco(K),
    "db_mtl": lambda: mt.db_mtl(K),
    "excess_mtl": lambda: mt.excess_mtl(K),
    "modo": lambda: mt.modo(K),
    "sdmgrad": lambda: mt.sdmgrad(K, rate=0.1),
    "one_at_a_time": lambda: mt.one_at_a_time(mt.mgda(), K),
}
LOSSES = np.float32([0.5, 2.0])


def draw():
    """Parameters, and gradients of two steps."""
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(2, K, 8, 4)).astype(np.float32)
    return {"w": np.ones((8, 4), np.float32)}, [{"w": g} for g in grads]


def two_steps(tx):
    def run(params, grads):
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update(grad, state, params, losses=LOSSES)
        return updates, state

    return run


def laid_out(types):
    """The mesh, and parameters and gradients whose rows lie over two devices."""
    params, grads = draw()
    mesh = jax.make_mesh((2,), ("x",), axis_types=(types,))
    with jax.set_mesh(mesh):
        laid = jax.device_put(params, NamedSharding(mesh, P("x")))
        return mesh, laid, jax.device_put(grads, NamedSharding(mesh, P(None, "x")))


def rows_of_terms(name, *states):
    """What has a parameter's shape for each term."""
    kept = [x for x in jax.tree.leaves(states) if x.shape == (K, 8, 4)]
    assert len(kept) == (0 if name in ("modo", "sdmgrad") else len(states))
    return kept


@pytest.mark.parametrize("name", STAGES)
def test_sharded_parameters(name):
    # On explicit axes the layout is part of the types, and tracing finds it.
    tx = STAGES[name]()
    mesh, params, grads = laid_out(AxisType.Explicit)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(two_steps(tx), params, grads)
    assert updates["w"].sharding.spec[-2:] == ("x", None)
    for leaf in rows_of_terms(name, state, after):
        assert leaf.sharding.spec == P(None, "x", None)


# The state of one, and its gramian and solver, are those of most of the others.
@pytest.mark.parametrize(
    "types",
    [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit],
    ids=str,
)
@pytest.mark.parametrize("name", some(STAGES, {"moco"}))
def test_numbers_with_sharded_parameters(name, types):
    tx, (params, grads) = STAGES[name](), draw()
    expected, _ = jax.jit(two_steps(tx))(params, grads)
    mesh, laid, split = laid_out(types)
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(laid)
        updates, after = jax.jit(two_steps(tx))(laid, split)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5, atol=1e-6)
    for leaf in rows_of_terms(name, state, after):
        wanted = NamedSharding(mesh, P(None, "x"))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), leaf.sharding


# Without those whose state goes through a vmap, as that of per_term.
@pytest.mark.parametrize("name", ["excess_mtl", "modo", "sdmgrad", "one_at_a_time"])
def test_terms_over_devices(name):
    # Tracing alone finds what does not fit together on explicit axes.
    tx, (params, grads) = STAGES[name](), draw()
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        laid = jax.device_put(grads[0], NamedSharding(mesh, P("x")))
        whole = jax.device_put(params, NamedSharding(mesh, P()))

        def update(grad, params, present):
            state = tx.init(params)
            extra = {"present": present} if name != "one_at_a_time" else {}
            return tx.update(grad, state, params, grads_2=grad, **extra)[0]

        found = jax.eval_shape(update, laid, whole, jnp.array([True, False]))
    lead = () if name == "one_at_a_time" else (K,)
    assert found["w"].shape == (*lead, 8, 4)
