"""The gramian from activations and cotangents is that of stacked gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import mgda, value_and_weighted_grad
from multiterm_optax.gradients import _cut_products, _cuts, _gramian
from tests.gradients._models import MODELS, OF_OTHERS, names
from tests.gradients._weighted import (
    column_losses,
    column_problem,
    flat,
    flops,
    head_losses,
    make_heads,
    network,
    spy,
)


def apart(found, expected):
    """Relative to the lengths of the two gradients of each entry."""
    lengths = np.sqrt(np.diag(expected))
    return np.max(np.abs(found - expected) / lengths / lengths[:, None])


@pytest.fixture
def every_cut(monkeypatch):
    """Small models are cut too."""
    monkeypatch.setattr(_cut_products, "worth", lambda *args, **kwargs: True)


@pytest.mark.parametrize("name", OF_OTHERS[:-1])
@pytest.mark.usefixtures("x64")
def test_a_network_of_a_library_is_cut(name):
    # That the numbers are right is told by the models that it is made of.
    params, row_losses, rows, cut = MODELS[name]()

    def found(params):
        _, linear = jax.linearize(lambda p: row_losses(p, rows), params)
        cuts = _cuts.find(linear, (params,), lambda cut: True).cuts
        assert {names(params)[one.leaf] for one in cuts} == cut

    jax.eval_shape(found, params)


@pytest.mark.parametrize("num_terms", [3, 24])
def test_float32(num_terms, record_deviation):
    layers, x, rows = column_problem()
    rows = rows[:num_terms]
    weighted_grad = value_and_weighted_grad(column_losses(num_terms), spy())
    state = weighted_grad.init(num_terms)
    update = jax.jit(weighted_grad.update)
    found = np.asarray(update(state, layers, x)[2].weighting)
    record_deviation("the same in float32", apart(found, rows @ rows.T))
    assert apart(found, rows @ rows.T) < 2e-6
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize(
    "name", [pytest.param("attention", marks=pytest.mark.slow), "ensemble", "dense"]
)
@pytest.mark.usefixtures("x64", "every_cut")
def test_many_terms(name):
    # In a batch, or in a loop where jaxlib 0.10 gets batched products wrong.
    params, row_losses, rows, _ = MODELS[name]()
    mixing = np.random.default_rng(0).normal(size=(17, len(rows)))
    losses_fn = lambda p, rows: mixing @ row_losses(p, rows)  # noqa: E731

    @jax.jit
    def compared(params, rows):
        losses, linear = jax.linearize(lambda p: losses_fn(p, rows), params)
        program = _cuts.find(linear, (params,), lambda cut: True)
        assert _gramian._fits(program, 17) == (name != "dense")
        gramian = _gramian._of_cuts(program, losses, 17)
        return gramian, jax.jacrev(losses_fn)(params, rows)

    gramian, jacobian = compared(params, rows)
    assert apart(gramian, flat(jacobian) @ flat(jacobian).T) < 1e-12


@pytest.mark.usefixtures("every_cut")
def test_half_precision_is_accumulated_wide():
    layers, x = network(16, 2), np.ones((4, 16), np.float32)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (layers, x))

    def losses_fn(layers, x):
        return column_losses(3)(layers, x).astype(jnp.float32)

    weighted_grad = value_and_weighted_grad(losses_fn, spy())
    _, grads, state = jax.jit(weighted_grad.update)(weighted_grad.init(3), *halves)
    assert state.weighting.dtype == jnp.float32
    assert jax.tree.leaves(grads)[0].dtype == jnp.bfloat16
    rows = flat(jax.jit(jax.jacrev(column_losses(3)))(layers, x))
    assert apart(np.asarray(state.weighting), rows @ rows.T) < 0.05


@pytest.mark.usefixtures("every_cut")
def test_shared_parameters_only():
    params, x = make_heads(), np.ones((5, 24), np.float32)
    weighted_grad = value_and_weighted_grad(
        head_losses, spy(), shared={"trunk": True, "heads": False}
    )
    state = jax.jit(weighted_grad.update)(weighted_grad.init(3), params, x)[2]
    jacobian = jax.jit(jax.jacrev(head_losses))(params, x)
    trunk = np.stack(
        [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(of["trunk"])])
            for of in jacobian.values()
        ]
    )
    assert apart(np.asarray(state.weighting), trunk @ trunk.T) < 1e-5


# What it costs.


def test_no_product_for_gradients():
    # K passes to the cuts, and products with 8 rows: no K gradients of 128 by 128.
    layers, x = (
        network(128, 4, abstract=True),
        jax.ShapeDtypeStruct((8, 128), "float32"),
    )
    losses_fn = column_losses(10)
    once = flops(lambda *a: losses_fn(*a).sum(), layers, x)
    both = flops(jax.value_and_grad(lambda *a: losses_fn(*a).sum()), layers, x)
    weighted_grad = value_and_weighted_grad(losses_fn, spy())
    state = jax.eval_shape(lambda: weighted_grad.init(10))
    found = flops(weighted_grad.update, state, layers, x)
    assert found <= both + 10 * 1.6 * once


def test_few_rows_are_needed():
    # With as many rows as the layers are wide the gradients are as cheap.
    def cuts(rows):
        found = []

        def record(layers, x):
            _, linear = jax.linearize(lambda p: column_losses(4)(p, x), layers)
            worth = _gramian._worth(None, 4, norms=False)
            found.append(len(_cuts.find(linear, (layers,), worth).cuts))

        x = jax.ShapeDtypeStruct((rows, 64), jnp.float32)
        jax.eval_shape(record, network(64, 2), x)
        return found

    assert cuts(8) == [2]
    assert cuts(512) == [0]


def test_a_way_that_is_asked_for_is_taken():
    layers, x = (
        network(128, 2, abstract=True),
        jax.ShapeDtypeStruct((8, 128), "float32"),
    )
    counts = []
    for way in (None, "leaf"):
        weighted_grad = value_and_weighted_grad(column_losses(4), mgda(), gramian=way)
        state = jax.eval_shape(lambda made=weighted_grad: made.init(4))
        counts.append(flops(weighted_grad.update, state, layers, x))
    assert counts[0] < 0.7 * counts[1]
