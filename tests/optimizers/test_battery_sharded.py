"""The battery's methods on the explicit axes of a mesh."""

import jax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests._asserts import assert_close
from tests.optimizers.test_battery import (
    METHODS,
    each_method,
    plain,
    random_steps,
    rising,
    run,
    steps_of,
)


def sharded(tree, mesh, lead):
    """Leaves with the parameters' first axis, after ``lead`` others, over the mesh."""

    def put(leaf):
        spec = [None] * lead + ["x"] * (leaf.ndim > lead)
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(put, tree)


def on_explicit_axes(name):
    """The method's transformation and its arguments, laid over two devices."""
    params, grads, losses = random_steps()
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        laid = sharded(params, mesh, 0), sharded(grads, mesh, 2), losses
    return mesh, METHODS[name].make(rising(), 2), laid


@each_method
def test_explicit_axes_of_a_mesh(name):
    # The axes are part of the types: tracing finds them.
    mesh, tx, (params, *steps) = on_explicit_axes(name)
    with jax.set_mesh(mesh):
        # The scan refuses a state whose shardings change.
        state = jax.eval_shape(tx.init, params)
        _, updates = jax.eval_shape(steps_of(tx, params, *steps), state)
        for leaf, param in params.items():
            expected = PartitionSpec(None, *jax.typeof(param).sharding.spec)
            assert updates[leaf].sharding.spec == expected


# By default tests/test_sharding.py compares the numbers of the larger methods.
@pytest.mark.slow
@each_method
def test_numbers_on_explicit_axes_of_a_mesh(name):
    mesh, tx, laid = on_explicit_axes(name)
    with jax.set_mesh(mesh):
        updates, _ = run(tx, *laid)
    assert_close(updates, plain(name), rtol=1e-5)
