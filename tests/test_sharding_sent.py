"""What a step on eight devices sends.

It is read from the compiled program: the shapes of its collectives, in bytes that
arrive at one device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import multiterm_optax as mt
from tests._sharded import (
    METHODS,
    K,
    collectives,
    lay,
    mesh_of,
    size,
    training_step,
)


def compile_step(step, *args):
    return jax.jit(step).lower(*args).compile()


def test_collectives_are_found_and_measured():
    mesh = mesh_of("auto")
    x = lay(np.zeros((16, 4), np.float32), mesh, P("x"))
    copied = NamedSharding(mesh, P())
    program = jax.jit(lambda x: (x, x.sum()), out_shardings=copied).lower(x).compile()
    assert collectives(program, "all-gather") == [16 * 4 * 4]
    assert collectives(program, "all-reduce") == [4]


def wide_losses_fn(params, batch):
    x, y = batch
    found = jnp.tanh(x @ params["w"]) @ params["head"]
    return {
        "fit": jnp.mean((found - y) ** 2),
        "even": jnp.mean(jnp.abs(found)),
    }


def wide(mesh, spec):
    """A network with more weights than a device has activations, and a batch."""
    shapes = {"w": (64, 64), "head": (64, 8)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    batch = (np.ones((64, 64), np.float32), np.ones((64, 8), np.float32))
    return lay(params, mesh, spec), lay(batch, mesh, P("x"))


def compile_summed(params, batch):
    tx = optax.adam(1e-2)

    def step(params, state, batch):
        def total(params):
            return sum(wide_losses_fn(params, batch).values())

        updates, state = tx.update(jax.grad(total)(params), state, params)
        return optax.apply_updates(params, updates), state

    return compile_step(step, params, tx.init(params), batch)


def compile_terms(method, params, batch):
    tx = METHODS[method]()
    step = training_step(tx, wide_losses_fn)
    return compile_step(step, params, tx.init(params), batch)


def compile_weights_first(params, batch):
    tx = optax.adam(1e-2)
    weighted_grad = mt.value_and_weighted_grad(wide_losses_fn, mt.mgda())

    def step(params, state, weights_state, batch):
        _, grads, weights_state = weighted_grad.update(weights_state, params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, weights_state

    weights_state = weighted_grad.init(K)
    return compile_step(step, params, tx.init(params), weights_state, batch)


def test_fsdp_gathers_no_more_than_the_summed_loss():
    mesh = mesh_of("auto")
    with jax.set_mesh(mesh):
        params, batch = wide(mesh, P("x"))
        summed = sum(collectives(compile_summed(params, batch), "all-gather"))
        assert summed >= size(params)  # each weight at least once
        for program in (
            compile_terms("mtadam", params, batch),
            compile_terms("weighted mgda", params, batch),
            compile_weights_first(params, batch),
        ):
            assert sum(collectives(program, "all-gather")) <= 1.25 * summed


def test_data_parallel_reduces_all_gradients_at_once():
    mesh = mesh_of("auto")
    with jax.set_mesh(mesh):
        params, batch = wide(mesh, P())
        scalars = 4 * 16
        for method in ("mtadam", "weighted mgda"):
            program = compile_terms(method, params, batch)
            (reduced,) = collectives(program, "all-reduce")  # one operation
            assert K * size(params) <= reduced <= K * size(params) + scalars
            assert collectives(program, "all-gather") == []
        # Weights first: the gradients for the gramian, then the weighted one.
        reduced = collectives(compile_weights_first(params, batch), "all-reduce")
        assert len(reduced) == 2
        assert sum(reduced) <= (K + 1) * size(params) + scalars
