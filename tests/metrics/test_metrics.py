"""Metrics against NumPy in float64, and dominance against the paper's definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import metrics, mgda, per_term, reweight, sum_terms
from tests._asserts import assert_finite, assert_identical

PARAMS = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}


# Jitted, since outside of it each operation is a program of its own.
@jax.jit
def geometry(grads):
    return {
        "gramian": metrics.gramian(grads),
        "norms": metrics.norms(grads),
        "cosines": metrics.cosines(grads),
        "conflicts": metrics.conflicts(grads),
    }


dominance = jax.jit(metrics.dominance)
dominance_shares = jax.jit(
    lambda state: metrics.dominance_shares(metrics.dominance(state))
)


def draw(num_terms, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: np.float32(scale * rng.normal(size=(num_terms, *leaf.shape)))
        for name, leaf in PARAMS.items()
    }


def rows(grads):
    return np.concatenate(
        [np.asarray(g, np.float64).reshape(len(g), -1) for g in grads.values()], axis=1
    )


@pytest.mark.parametrize("num_terms", [1, 3, 20])
def test_geometry(num_terms):
    grads = draw(num_terms)
    jacobian = rows(grads)
    products, lengths = jacobian @ jacobian.T, np.linalg.norm(jacobian, axis=1)
    found = geometry(grads)
    np.testing.assert_allclose(found["gramian"], products, atol=2e-5)
    np.testing.assert_allclose(found["norms"], lengths, rtol=1e-6)
    angles = products / np.outer(lengths, lengths)
    np.testing.assert_allclose(found["cosines"], angles, atol=1e-6)
    pairs = [(i, j) for i in range(num_terms) for j in range(i)]
    negative = sum(products[i, j] < 0 for i, j in pairs)
    expected = negative / len(pairs) if pairs else 0.0
    assert float(found["conflicts"]) == pytest.approx(expected)


def test_a_zero_gradient_is_at_no_angle():
    grads = jax.tree.map(
        lambda g: g * (np.arange(3) > 0).reshape(-1, *[1] * (g.ndim - 1)), draw(3)
    )
    found = np.asarray(geometry(grads)["cosines"])
    np.testing.assert_array_equal(found[0], np.zeros(3))
    assert_finite(found)


def test_neither_orthogonal_nor_zero_gradients_conflict():
    grads = np.float32([[1.0, 0, 0], [0, 2, 0], [0, 0, 0], [-3, 1, 1]])
    # Only the first and the last conflict, of six pairs.
    conflicts = jax.jit(metrics.conflicts)
    np.testing.assert_allclose(conflicts(grads), 1 / 6, rtol=1e-6)
    assert float(conflicts(grads[:3])) == 0


def test_bfloat16_is_accumulated_in_float32():
    ones = np.ones((2, 100_000), jnp.bfloat16)
    norms = jax.jit(metrics.norms)(ones)
    np.testing.assert_allclose(norms, np.sqrt([1e5, 1e5]), rtol=1e-6)
    assert jax.eval_shape(metrics.gramian, ones).dtype == jnp.float32


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    "function",
    [metrics.gramian, metrics.norms, metrics.cosines, metrics.conflicts],
)
def test_leaves_without_one_common_term_axis(function):
    with pytest.raises(ValueError, match="term axis"):
        function({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match="term axis"):
        function({"a": jnp.ones(())})
    with pytest.raises(ValueError, match="found none"):
        function({})


# --- dominance ---------------------------------------------------------------


def accumulate(steps, decay):
    """AdaTask's Eq. 2, in float64."""
    total = 0.0
    for updates in steps:
        total = decay * total + (1 - decay) * np.asarray(updates, np.float64) ** 2
    return total


@functools.cache
def tracked(decay):
    tx = metrics.track_dominance(3, decay)
    return tx.init, jax.jit(tx.update)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_dominance_follows_the_papers_definition(decay, scale):
    init, update = tracked(decay)
    state = init(PARAMS)
    steps = [draw(3, seed, scale) for seed in range(10)]
    for updates in steps:
        passed, state = update(updates, state, PARAMS)
        assert_identical(passed, updates)
    shares = dominance(state)
    for name in PARAMS:
        total = accumulate([updates[name] for updates in steps], decay)
        np.testing.assert_allclose(shares[name], total / total.sum(0), rtol=2e-5)


@pytest.mark.parametrize("size", [2e-19, 9e18])
def test_dominance_at_both_ends_of_the_range(size):
    # The squares are numbers of float32, the sum of the large ones is none.
    tx = metrics.track_dominance(3, decay=0.0)
    updates = np.float32(size * np.array([[1.0], [2.0], [2.0]]))
    _, state = jax.jit(tx.update)(updates, tx.init(np.zeros(1, np.float32)))
    shares = np.asarray(dominance(state))[:, 0]
    np.testing.assert_allclose(shares, np.array([1, 4, 4]) / 9, rtol=1e-5)


def test_what_nothing_moved_is_shared_equally():
    tx = metrics.track_dominance(4)
    shares = dominance(tx.init(PARAMS))
    for leaf in jax.tree.leaves(shares):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, 0.25))


def test_one_term_dominates_everything_it_moves():
    tx = metrics.track_dominance(2)
    updates = draw(2)
    for leaf in updates.values():
        leaf[1] = 0
    _, state = jax.jit(tx.update)(updates, tx.init(PARAMS))
    shares = dominance_shares(state)
    np.testing.assert_array_equal(shares, [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]])


def test_adatask_is_balanced_where_the_sum_is_dominated():
    """The paper's point: equal gradients up to a factor, shared out by AdaTask."""
    grads = draw(2)
    for leaf in grads.values():
        leaf[1] = 100 * leaf[0]

    def shares(*stages):
        tx = optax.chain(*stages, metrics.track_dominance(2), sum_terms())
        _, state = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
        return np.asarray(dominance_shares(state))

    np.testing.assert_array_equal(shares()[1], [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(
        shares(per_term(optax.scale_by_adam(), 2))[1], [0, 0, 1, 0, 0]
    )


@pytest.mark.parametrize("groups", ["global", "leaf", {"w": "x", "b": "y"}])
def test_shares_are_counted_by_group(groups):
    rau = {
        "w": np.tile(np.float32([0.2, 0.8])[:, None, None], (1, 3, 4)),
        "b": np.stack([share := np.float32([0, 0.1, 0.5, 0.75, 1]), 1 - share]),
    }
    shares = jax.jit(lambda rau: metrics.dominance_shares(rau, groups))(rau)
    shares = jax.tree.map(np.asarray, shares)
    by_w, by_b = np.array([1, 0, 0, 0, 0]), np.array([0.4, 0, 0.2, 0.2, 0.2])
    if groups == "global":
        np.testing.assert_allclose(shares[0], (12 * by_w + 5 * by_b) / 17, rtol=1e-6)
        return
    names = ("w", "b") if groups == "leaf" else ("x", "y")
    for name, expected in zip(names, (by_w, by_b), strict=True):
        np.testing.assert_allclose(shares[name][0], expected, rtol=1e-6)


def test_dominance_needs_exactly_one_tracker():
    with pytest.raises(ValueError, match=r"exactly one .* found 0"):
        metrics.dominance(optax.adam(1.0).init(PARAMS))
    tx = optax.chain(metrics.track_dominance(2), metrics.track_dominance(2))
    with pytest.raises(ValueError, match="found 2"):
        metrics.dominance(tx.init(PARAMS))


# --- reader ------------------------------------------------------------------


def test_read_finds_fields_of_the_same_name_in_several_stages():
    tx = optax.chain(reweight(mgda(), 2), reweight(mgda(), 2))
    state = tx.init(PARAMS)
    with pytest.raises(KeyError):
        optax.tree.get(state, "weights")
    found = metrics.read(state, "weights")
    assert list(found) == ["[0].weights", "[1].weights"]
    assert list(metrics.read(state, "converged")) == [
        "[0].weighting.converged",
        "[1].weighting.converged",
    ]


def test_read_refuses_a_field_that_is_not_there():
    with pytest.raises(KeyError, match="'skipped' must be in the state, found none"):
        metrics.read(optax.sgd(1.0).init(PARAMS), "skipped")
    state = optax.adam(1.0).init(PARAMS)
    with pytest.raises(KeyError, match=r"'weights' must be .* found count, mu, nu"):
        metrics.read(state, "weights")
