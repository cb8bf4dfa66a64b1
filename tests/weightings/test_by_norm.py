"""Norm balancing as a weighting; balance_by_norm has the tests of the method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_message
from tests._methods import Method
from tests.weightings import _groups

METHODS = {
    "by_norm": Method(mt.by_norm, anchored=True, invariant=True),
    "by_norm, paper": Method(
        mt.by_norm, {"anchor": 0, "norm_init": 1.0}, anchored=True, invariant=False
    ),
    "by_norm, mean": Method(
        mt.by_norm, {"anchor": "mean"}, permutes=True, invariant=True
    ),
}

OPTIONS = {
    "default": {},
    "slow": {"decay": 0.999},
    "anchor": {"anchor": 2, "weights": [1.0, 0.5, 3.0]},
    "paper": {"anchor": 0, "norm_init": 1.0},
    "coarse": {"eps": 0.1},
    "mean": {"anchor": "mean", "eps": 0.1, "weights": [1.0, 0.5, 3.0]},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("grouping", _groups.GROUPINGS)
def test_it_is_the_stage_and_the_stage_is_its_formula(x64, options, grouping):
    chosen = OPTIONS[options]
    groups = _groups.GROUPINGS[grouping][0]
    found, staged = _groups.run_stage(
        mt.reweight(mt.by_norm(**chosen), 3, groups),
        mt.balance_by_norm(3, groups=groups, **chosen),
    )
    averages = {}

    def mix(t, rows):
        """The formula on one group's matrix, whose width tells which group it is."""
        del t
        group = rows.shape[1]
        beta, eps = chosen.get("decay", 0.9), chosen.get("eps", 1e-10)
        norms = np.linalg.norm(rows, axis=1)
        old = averages.get(group)
        if old is None:
            start = chosen.get("norm_init")
            old = norms if start is None else np.full(len(rows), start)
        averages[group] = n = beta * old + (1 - beta) * norms
        active = n > eps * n.max()
        anchor = chosen.get("anchor", int(np.argmax(active)))
        mean = np.exp(np.mean(np.log(n[active])))
        size = mean if anchor == "mean" else n[anchor]
        ratios = size / n * np.array(chosen.get("weights", np.ones(len(rows))))
        return np.where(active, ratios, 1)[:, None] * rows

    expected = _groups.expected(mix, grouping)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-12)
    for t in range(_groups.STEPS):
        one, other = ({n: leaf[t] for n, leaf in x.items()} for x in (staged, found))
        assert_close(one, other, rtol=1e-12)


def test_it_costs_no_products_of_two_terms():
    def flops(weighting):
        tx = mt.weighted(weighting, optax.sgd(1.0), 10)
        shape = jax.ShapeDtypeStruct((50_000,), np.float32)
        state, grads = jax.eval_shape(tx.init, shape), shape.update(shape=(10, 50_000))
        step = jax.jit(tx.update).lower(grads, state, losses=np.ones(10, np.float32))
        return step.compile().cost_analysis()["flops"]

    fixed = flops(mt.constant(np.ones(10)))
    for weighting in (mt.by_norm(), mt.gradnorm()):
        # One multiplication and one addition for each element of the gradients.
        assert flops(weighting) - fixed < 2.2 * 10 * 50_000
    assert flops(mt.mgda()) - fixed > 10 * 10 * 50_000


def test_weights_first_reads_no_gramian_either():
    def losses_fn(p):
        return jnp.stack([jnp.sum(p**2), 9 * jnp.sum(p), jnp.sum(jnp.sin(p))])

    p = np.arange(1, 5, dtype=np.float32)
    found = mt.value_and_weighted_grad(losses_fn, mt.by_norm())
    _, grads, state = jax.jit(found.update)(found.init(3), p)
    rows = np.stack([2 * p, 9 * np.ones(4), np.cos(p)])
    sizes = np.linalg.norm(rows, axis=1)
    assert_close(state.weights, sizes[0] / sizes, rtol=1e-6)
    assert_close(grads, (sizes[0] / sizes) @ rows, rtol=1e-6)


def test_outer_derivatives_take_the_weights_as_constants():
    def moved(scale):
        tx = mt.balance_by_norm(2)
        grads = scale * jnp.array([[3.0, 4.0], [0.0, 0.0]])
        updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
        return jnp.sum(updates)

    assert_identical(jax.jit(jax.grad(moved))(1.0), np.float32(7.0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_leaves_its_average(value):
    weighting, norms = mt.by_norm(0.5), []
    state, update = weighting.init(2), jax.jit(weighting.update)
    for current in ([3.0, 4.0], [value, 8.0], [5.0, 10.0]):
        weights, state = update(np.float32(current) ** 2, state)
        norms.append(np.asarray(state.norms))
    assert_close(norms, [np.array(n) for n in ([3.0, 4], [3, 6], [4, 8])], rtol=1e-6)
    assert_close(weights, np.array([1.0, 0.5]), rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
def test_errors_name_the_function_that_was_called():
    options = {"anchor": 5}
    calls = {
        "balance_by_norm": lambda: mt.balance_by_norm(2, **options),
        "mtadam": lambda: mt.mtadam(0.1, 2, **options),
        "metabalance": lambda: mt.metabalance(optax.sgd(0.1), 2, **options),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match="anchor must be") as error:
            call()
        assert_message(error.value, f"{name}: anchor", "[0, 1]", "found 5")
    for name, tx in {
        "mtadam": mt.mtadam(0.1, 2),
        "metabalance": mt.metabalance(optax.sgd(0.1), 2),
        "adatask": mt.adatask(optax.sgd(0.1), 2),
        "adatask_adam": mt.adatask_adam(0.1, 2),
        "adatask_rmsprop": mt.adatask_rmsprop(0.1, 2),
    }.items():
        with pytest.raises(ValueError, match="updates must") as error:
            tx.update(jnp.ones((3, 2)), tx.init(jnp.ones(2)))
        assert_message(error.value, f"{name}: updates")
    with pytest.raises(TypeError, match="anchor must be"):
        mt.by_norm(anchor=np.array(["mean", "mean"]))
    weighting = mt.by_norm(anchor=5)
    with pytest.raises(ValueError, match="anchor must be") as error:
        weighting.init(2)
    assert_message(error.value, "by_norm: anchor", "[0, 1]", "found 5")
