"""Exact figures, not timings: what the update holds, moves and traces.

Bytes and temporaries are XLA's own counts for a compiled CPU program, in copies of
the parameters. Nothing is allocated: shapes are compiled. Layers of 256 x 256 are the
size from which the figures hold: the reductions' partial sums and the vectors of K
numbers, which do not grow with the layers' area, count for more in smaller ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    Weighting,
    adatask_adam,
    mtadam,
    reweight,
    value_and_term_grads,
)
from tests._asserts import CountedTraces, assert_single_trace

LAYERS, WIDTH = 3, 256
TERMS = [2, 10]  # What is held and moved is a line in K.


def shapes():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    return [{"w": shape(WIDTH, WIDTH), "b": shape(WIDTH)} for _ in range(LAYERS)]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def compiled(tx, num_terms):
    """One update with parameters and state donated in the order of the outputs."""
    params = shapes()
    state = jax.eval_shape(tx.init, params)
    grads = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct((num_terms, *p.shape), p.dtype), params
    )

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    return donated.lower(params, state, grads).compile()


def copies(count_of_bytes):
    return count_of_bytes / (4 * size(shapes()))


@pytest.mark.parametrize("num_terms", TERMS)
def test_mtadam_keeps_one_first_moment_and_k_second_moments(num_terms):
    params = shapes()
    state = jax.eval_shape(mtadam(1e-3, num_terms).init, params)
    leaves = len(jax.tree.leaves(params))
    # K + 1 copies, K norms a leaf, a count of steps for all and one for each term.
    copies, norms, counts = num_terms + 1, num_terms * leaves, num_terms + 1
    assert size(state) == copies * size(params) + norms + counts


@pytest.mark.parametrize("num_terms", TERMS)
def test_mtadam_moves_little_and_copies_nothing(num_terms):
    program = compiled(mtadam(1e-3, num_terms), num_terms)
    assert copies(program.memory_analysis().temp_size_in_bytes) <= 0.05
    # Each of the K gradients is read once for its norm and once for the step, each
    # second moment read and written, the first moment and the parameters, too:
    # 4K + 4. On CPU one kernel writes one buffer: the first moment, the second
    # moments and the parameters take three kernels, which between them read the
    # gradients and the second moments once more, 6K + 5.
    moved = copies(program.cost_analysis()["bytes accessed"])
    assert moved <= 1.5 * (4 * num_terms + 4)
    assert moved == pytest.approx(6 * num_terms + 5, rel=0.02)


@pytest.mark.parametrize("num_terms", TERMS)
def test_adatask_adam_copies_nothing(num_terms):
    tx = adatask_adam(1e-3, num_terms)
    params = shapes()
    state = jax.eval_shape(tx.init, params)
    assert size(state) == 2 * num_terms * size(params) + num_terms + 1
    program = compiled(tx, num_terms)
    assert copies(program.memory_analysis().temp_size_in_bytes) <= 1e-3


@pytest.mark.parametrize("num_terms", [4, 11, 64])
def test_the_gramian_copies_pieces_only(num_terms):
    params = shapes()
    # What a weighting makes of the gramian is small beside it.
    reads_only = Weighting(
        lambda num_terms: jnp.zeros((num_terms, num_terms)),
        lambda gramian, state, **_: (jnp.ones(num_terms), gramian),
    )
    tx = reweight(reads_only, num_terms)
    state = jax.eval_shape(tx.init, params)
    grads = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct((num_terms, *p.shape), p.dtype), params
    )

    def weights(grads, state):
        return tx.update(grads, state)[1]

    program = jax.jit(weights).lower(grads, state).compile()
    temporaries = copies(program.memory_analysis().temp_size_in_bytes)
    assert temporaries <= 0.1 * num_terms


@pytest.mark.parametrize("optimizer", [mtadam, adatask_adam])
def test_a_training_step_is_traced_once(optimizer):
    tx = optimizer(1e-2, 2)
    params = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}

    def losses_fn(params, x):
        y = x @ params["w"] + params["b"]
        return {"fit": jnp.mean((y - 1) ** 2), "size": jnp.sum(params["w"] ** 2)}

    def step(params, state, x):
        losses, grads = value_and_term_grads(losses_fn)(params, x)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses

    counted = CountedTraces(step)
    jitted = jax.jit(lambda *args: counted(*args), donate_argnums=(0, 1))
    params, state = jax.device_put(params), jax.jit(tx.init)(params)
    for x in np.random.default_rng(0).normal(size=(10, 4, 3)).astype(np.float32):
        params, state, losses = jitted(params, state, x)
    assert_single_trace(counted)
    assert np.isfinite(losses["fit"])
