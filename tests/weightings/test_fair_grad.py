"""Nash-MTL and FairGrad against Newton's method over directions, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import fair_grad, nash_mtl, reweight
from tests._arguments import ByTerm
from tests._asserts import assert_message
from tests._methods import Method
from tests.references import fair_grad as reference
from tests.weightings import _awkward

# Their weights have the unit of 1 / gradient, or of a power of it.
METHODS = {
    "nash_mtl": Method(nash_mtl, invariant=False),
    "fair_grad": Method(fair_grad, invariant=False),
    "fair_grad, alpha 2": Method(
        fair_grad,
        {"alpha": 2.0, "preference": ByTerm((0.5, 2.0, 1.0))},
        permutes=False,
        invariant=False,
    ),
}
KNOWN = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
ALPHAS = [0.5, 1.0, 2.0, 5.0]


# As many as there are awkward ones, so that one program of a size serves all tests.
BATCH = len(_awkward.ROWS)


@jax.jit
def compiled(gramians, alphas, preferences):
    """FairGrad for each of several settings, one a gramian."""

    def one(gramian, alpha, preference):
        return _awkward.step(fair_grad(alpha, preference), gramian)

    return jax.vmap(one)(gramians, alphas, preferences)


def fair(rows, alpha=1.0, preference=1.0):
    """Weights and states for a batch of rows; settings for each, or for all."""
    rows = np.asarray(rows)
    alphas = np.broadcast_to(alpha, len(rows)).astype(rows.dtype)
    preferences = np.broadcast_to(preference, rows.shape[:2]).astype(rows.dtype)
    found = compiled(_awkward.gramians(rows), alphas, preferences)
    return jax.tree.map(np.asarray, found)


nash = _awkward.batched(nash_mtl())


def deviations(rows, dtype):
    """How far directions and weights are from the reference, relative to their size."""
    rng = np.random.default_rng(0)
    alphas = np.resize(ALPHAS, len(rows))
    preferences = 10.0 ** rng.uniform(-1, 1, size=rows.shape[:2])
    exact = np.asarray(rows, dtype).astype(np.float64)
    found, state = fair(exact.astype(dtype), alphas, preferences)
    assert np.all(state.converged)
    assert np.all(np.asarray(found) > 0)
    apart = []
    for one, weights, alpha, p in zip(exact, found, alphas, preferences, strict=True):
        expected = reference.direction(one, alpha, p)
        gap = np.float64(weights) @ one - expected
        apart.append(np.linalg.norm(gap) / np.linalg.norm(expected))
    return np.array(apart)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(3, BATCH), (10, 8)])
def test_agrees_with_the_reference(terms, count, record_deviation):
    rows = _awkward.random_batch(terms, terms, count)
    apart = deviations(rows, np.float64)
    record_deviation("fair_grad, nash_mtl", apart.max())
    assert apart.max() < 1e-11


def test_agrees_with_the_reference_in_single_precision(record_deviation):
    rows = _awkward.random_batch(3, 3, BATCH)
    apart = deviations(rows, np.float32)
    record_deviation("fair_grad, nash_mtl, float32", apart.max())
    # A gramian in float32 knows a direction at 88 degrees to about 1e-7 / 0.03.
    assert apart.max() < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(2, 2000), (3, 2000), (8, 800), (24, 80)])
def test_thousands_of_ill_conditioned_problems(terms, count):
    rows = _awkward.random_batch(100 + terms, terms, count)
    assert deviations(rows, np.float64).max() < 1e-10


def test_known_numbers():
    """Those that other implementations give."""
    # Beside a third gradient of zero, so that they need no program of their own.
    rows = np.float32([[*KNOWN, np.zeros(3)]] * BATCH)
    weights, _ = fair(rows)
    np.testing.assert_allclose(weights[0], [0.5915, 0.4071, 0.0], atol=5e-5)
    weights, _ = nash(rows)
    found = weights[0] @ rows[0]
    np.testing.assert_allclose(
        found / np.linalg.norm(found), [0.0542, 0.7061, 0.7061], atol=5e-5
    )


def test_alpha_1_is_nash_and_its_length_is_the_root_of_k():
    rows = _awkward.random_batch(0, 3, BATCH).astype(np.float32)
    weights = np.asarray(nash(rows)[0], np.float64)
    np.testing.assert_allclose(fair(rows)[0], weights, rtol=1e-6)
    found = np.einsum("nk,nkp->np", weights, rows)
    along = np.einsum("nkp,np->nk", rows, found)
    np.testing.assert_allclose(along * weights, 1, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 3**0.5, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_how_weights_depend_on_scales(alpha):
    rows = _awkward.random_batch(1, 3, BATCH, apart=0).astype(np.float32)
    plain, _ = fair(rows, alpha)
    for scale in _awkward.SCALES:
        factor = np.float32(2.0 ** np.round(np.log2(scale)))
        weights, _ = fair(rows * factor, alpha)
        power = np.float64(factor) ** (-2 * alpha / (1 + alpha))
        np.testing.assert_allclose(weights / power, plain, rtol=2e-5)


def test_nash_does_not_depend_on_the_scale_of_a_term():
    rows = _awkward.random_batch(2, 3, BATCH, apart=0).astype(np.float32)
    plain, _ = nash(rows)
    factors = np.float32(2.0 ** np.array([-30, 0, 40]))
    weights, _ = nash(rows * factors[:, None])
    np.testing.assert_allclose(weights * factors, plain, rtol=1e-6)


def test_small_alpha_is_the_weighted_sum_and_large_alpha_the_fairest():
    rows = np.float32([[[1, 0, 0], [1, 2, 0], [0, 1, 4]]] * BATCH)
    weights, _ = fair(rows, 1e-3, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(weights[0], [1, 2, 3], rtol=0.01)
    weights, state = fair(rows, 100.0)
    assert state.converged.all()
    along = rows[0] @ (weights[0] @ rows[0])
    assert along.max() / along.min() < 1.2


@functools.cache
def awkward(alpha, scale):
    return _awkward.solutions(lambda rows: fair(rows, alpha), scale)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("scale", _awkward.SCALES)
@pytest.mark.parametrize("name", _awkward.ROWS)
def test_awkward_gradients(name, scale, alpha):
    rows, weights, state = awkward(alpha, scale)[name]
    silent = ~rows.any(axis=1)
    assert np.all(np.isfinite(weights))
    np.testing.assert_array_equal(weights > 0, ~silent)
    if "nearly" not in name:
        assert bool(state.converged) == (name not in _awkward.OPPOSED)
    if state.converged and not silent.all():
        along = (rows @ (weights @ rows))[~silent]
        np.testing.assert_allclose(along * weights[~silent] ** (1 / alpha), 1, rtol=0.1)


@pytest.mark.parametrize("scale", _awkward.SCALES)
def test_where_opposed_gradients_are_all_there_is_nothing_moves(scale):
    for name in ("zero and opposed", "opposed, rank 1", "opposed to a mixture"):
        rows, weights, _ = awkward(1.0, scale)[name]
        # With a solution it would be sqrt(K) long.
        assert np.linalg.norm(weights @ rows) < 0.01
    # The third goes on as if it were alone.
    rows, weights, _ = awkward(1.0, scale)["two opposed"]
    unit = rows[2] / np.linalg.norm(rows[2])
    np.testing.assert_allclose(weights @ rows, unit, atol=0.01)


def test_one_term_keeps_its_gradient():
    weights, state = fair(np.float32([[[3, 4]], [[0, 0]]]), 2.0)
    np.testing.assert_array_equal(weights, np.ones((2, 1)))
    assert state.converged.all()


def test_a_term_of_preference_zero_is_left_out():
    rows = _awkward.random_batch(3, 3, BATCH).astype(np.float32)
    weights, _ = fair(rows, 2.0, [1.0, 0.0, 2.0])
    np.testing.assert_array_equal(weights[:, 1], 0)
    for found, two in zip(weights[:, [0, 2]], rows[:, [0, 2]], strict=True):
        two = two.astype(np.float64)
        expected = reference.direction(two, 2.0, np.array([1.0, 2.0]))
        gap = np.linalg.norm(found @ two - expected)
        assert gap <= 1e-5 * np.linalg.norm(expected)


def test_a_gramian_that_is_not_finite_has_not_converged():
    products = np.tile(np.eye(3, dtype=np.float32), (BATCH, 1, 1))
    products[0, 0, 1] = products[0, 1, 0] = np.nan
    products[1, 2, 2] = np.inf
    ones = np.ones((BATCH, 3), np.float32)
    _, state = compiled(products, ones[:, 0], ones)
    assert not state.converged[:2].any()
    assert state.converged[2:].all()


@pytest.mark.usefixtures("x64")
def test_one_vmap_trains_a_whole_front():
    """Preferences under vmap, on two parabolas whose minima are apart."""
    minima = np.array([[0.0, 0.0], [1.0, 1.0]])

    def train(preference):
        weighting = fair_grad(2.0, preference)

        def step(x, rate):
            gradients = np.array([1.0, 3.0])[:, None] * (x - minima)
            weights, _ = _awkward.step(weighting, gradients @ gradients.T)
            return x - rate * weights @ gradients, None

        start, rates = jnp.array([1.0, -1.0]), 0.2 * 0.97 ** np.arange(300)
        return jax.lax.scan(step, start, rates)[0]

    shares = np.linspace(0.1, 0.9, 5)
    both = np.stack([1 - shares, shares], axis=1)
    found = np.asarray(jax.jit(jax.vmap(train))(both))
    # On the line between the minima, the nearer to one the more it is preferred.
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=0.05)
    assert np.all((found > 0) & (found < 1))
    assert np.all(np.diff(found, axis=0) > 0.05)


def test_bad_arguments(own_errors):
    for alpha in (0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match="alpha") as error:
            fair_grad(alpha)
        assert_message(error, "fair_grad", "alpha", "(0, inf)", repr(alpha))
    with pytest.raises(ValueError, match="preference") as error:
        fair_grad(preference=jnp.array([1.0, -1.0]))
    assert_message(error, "fair_grad", "preference", "-1")
    tx = reweight(fair_grad(preference=jnp.ones(3)), num_terms=2)
    with pytest.raises(ValueError, match="preference") as error:
        tx.init(jnp.zeros(2))
    assert_message(error, "fair_grad", "preference", "(2,)", "(3,)")
