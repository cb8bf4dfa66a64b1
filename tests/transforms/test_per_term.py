"""Any Optax transformation, once for each term."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from multiterm_optax import adatask, balance_by_norm, mtadam, per_term
from tests._asserts import assert_close, assert_identical, assert_message
from tests._runs import first_step

K = 3
PARAMS = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2),
    "b": np.ones(2, np.float32),
    "n": None,
}
INNERS = {
    "adam": optax.scale_by_adam(),
    "clip": optax.clip_by_global_norm(0.5),
    "chain": optax.chain(optax.trace(0.9), optax.scale(-1.0)),
    "decayed": optax.add_decayed_weights(0.1),
    "masked": optax.masked(optax.scale(2.0), {"w": True, "b": False, "n": None}),
    "rows": optax.scale_by_factored_rms(min_dim_size_to_factor=2),
    "schedule": optax.scale_by_schedule(optax.exponential_decay(1.0, 1, 0.5)),
}


def draw(steps=4):
    """Gradients in NumPy, leaves [steps, K, *p]."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: rng.normal(size=(steps, K, *p.shape)).astype(np.float32), PARAMS
    )


@pytest.mark.parametrize("inner", INNERS)
def test_each_term_goes_through_inner_alone(inner):
    inner, grads = INNERS[inner], draw()
    lifted = per_term(inner, K)

    def step(carry, grad):
        state, states = carry
        found, state = lifted.update(grad, state, PARAMS)
        terms = [jax.tree.map(lambda g, i=i: g[i], grad) for i in range(K)]
        each = [inner.update(*one, PARAMS) for one in zip(terms, states, strict=True)]
        expected, states = zip(*each, strict=True)
        return (state, [*states]), (found, expected)

    @jax.jit
    def run(params, grads):
        start = lifted.init(params), [inner.init(params)] * K
        return jax.lax.scan(step, start, grads)

    (state, states), (found, expected) = jax.device_get(run(PARAMS, grads))
    for i in range(K):
        for t in range(4):
            one = jax.tree.map(lambda u, i=i, t=t: u[t, i], found)
            assert_close(one, jax.tree.map(lambda u, t=t: u[t], expected[i]), rtol=1e-6)
    stacked = jax.tree.map(lambda *s: np.stack(s), *states)
    assert_close(state, stacked, rtol=1e-6)


def test_extra_arguments_reach_inner():
    def update(updates, state, params=None, *, factor, **extra_args):
        assert extra_args == {"note": "x"}
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = per_term(inner, 2)
    grads = np.arange(6, dtype=np.float32).reshape(2, 3)
    update = jax.jit(lambda g: tx.update(g, tx.init(g[0]), factor=3.0, note="x")[0])
    assert_identical(update(grads), 3 * grads)


def test_inner_without_extra_arguments_is_not_given_any():
    inner = optax.GradientTransformation(
        lambda p: optax.EmptyState(), lambda u, s, params=None: (u, s)
    )
    tx = per_term(inner, 2)
    grads = np.ones((2, 3), np.float32)
    updates, _ = first_step(tx, grads, value=1.0)
    assert_identical(updates, grads)


def test_clipping_inside_clips_each_term_and_before_all_jointly():
    grads = np.float32([[3.0, 4.0], [0.3, 0.4]])
    updates, _ = first_step(per_term(optax.clip_by_global_norm(1.0), 2), grads)
    assert_close(updates, np.float32([[0.6, 0.8], [0.3, 0.4]]), rtol=1e-6)


def test_state_can_be_read_by_name():
    state = jax.eval_shape(per_term(optax.scale_by_adam(), K).init, PARAMS)
    assert optax.tree.get(state, "mu")["w"].shape == (K, 3, 2)
    assert optax.tree.get(state, "count").shape == (K,)


def test_lifts_itself():
    # Terms of terms: [2, 3, *p].
    tx = per_term(per_term(optax.scale_by_adam(), 3), 2)
    grads = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    updates, _ = jax.jit(tx.update)(grads, tx.init(np.zeros(4, np.float32)))
    assert_close(updates, np.sign(grads), rtol=1e-3)


def make_mesh():
    """Two devices, shardings left to the compiler."""
    return jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))


def ones_of_terms(mesh):
    ones = np.ones((K, 4, 2), np.float32)
    return jax.device_put(ones, NamedSharding(mesh, P(None, "x")))


@pytest.mark.parametrize(
    "build",
    [
        lambda: per_term(optax.scale_by_adam(), K),
        lambda: mtadam(0.1, K, amsgrad=True),
        lambda: adatask(optax.adam(0.1), K),
    ],
    ids=["per_term", "mtadam", "adatask"],
)
def test_sharding_of_the_parameters_is_kept(build):
    mesh = make_mesh()
    sharded = NamedSharding(mesh, P("x"))
    params = jax.device_put(np.ones((4, 2), np.float32), sharded)
    grads = ones_of_terms(mesh)
    tx = build()
    state = jax.jit(tx.init)(params)
    _, state = jax.jit(tx.update)(grads, state, params)
    for leaf in jax.tree.leaves(state):
        if leaf.shape[-2:] == (4, 2):
            spec = P("x") if leaf.ndim == 2 else P(None, "x")
            expected = NamedSharding(mesh, spec)
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), leaf.sharding


def test_eager_init_keeps_the_sharding():
    mesh = make_mesh()
    params = jax.device_put(np.ones((4, 2), np.float32), NamedSharding(mesh, P("x")))
    expected = NamedSharding(mesh, P(None, "x"))
    for tx in (per_term(optax.scale_by_adam(), K), mtadam(0.1, K)):
        nu = optax.tree.get(tx.init(params), "nu")
        assert nu.shape == (K, 4, 2)
        assert nu.sharding.is_equivalent_to(expected, 3), nu.sharding


def test_no_leaf_is_gathered():
    mesh = make_mesh()
    grads = ones_of_terms(mesh)
    params = jax.device_put(np.ones((4, 2), np.float32), NamedSharding(mesh, P("x")))
    for tx in (balance_by_norm(K), mtadam(0.1, K)):
        state = jax.jit(tx.init)(params)
        program = jax.jit(tx.update).lower(grads, state, params).compile().as_text()
        assert "all-gather" not in program
        assert "all-reduce" in program  # the norms


def test_inner_must_be_a_transformation(own_errors):
    with pytest.raises(TypeError, match="per_term") as caught:
        per_term(lambda g: g, K)
    assert_message(caught.value, "inner", "optax.GradientTransformation", "found")


@pytest.mark.parametrize("count", [0, -1, True, 2.5])
def test_bad_num_terms_is_named(own_errors, count):
    with pytest.raises((TypeError, ValueError), match="per_term: num_terms") as caught:
        per_term(optax.scale(1.0), count)
    assert_message(caught.value, "found", repr(count))


def test_wrong_number_of_terms_is_named():
    tx = per_term(optax.scale_by_adam(), K)
    with pytest.raises(ValueError, match="num_terms=3, but the term axis has 2"):
        first_step(tx, np.ones((2, 4), np.float32), np.zeros(4, np.float32))
