"""CAGrad against its optimality conditions, and in float32 against float64."""

import jax
import numpy as np
import optax
import pytest

from multiterm_optax import cagrad, per_term, reweight, sum_terms
from multiterm_optax.weightings import _cagrad
from tests._asserts import assert_close, assert_finite, assert_message
from tests._methods import Method
from tests._problems import Pulls, sizes
from tests.references import adatask, flat
from tests.references import cagrad as reference
from tests.weightings import _groups, _jacobians

ALWAYS = {"permutes": True, "invariant": True, "digits": 1e-6}
METHODS = {
    "cagrad": Method(cagrad, **ALWAYS),
    "cagrad, rescaled": Method(cagrad, {"c": 0.4, "rescale": True}, **ALWAYS),
}

STEPS = 30

SIZES = sizes(3, 64, slow=(2, 10))


RESCALES = (False, True, "linear")


# The radius is traced here, and a fixed number where whole steps are compared. The
# rescales share what is solved.
@jax.jit
def compiled(gramian, c):
    made = [cagrad(c, rescale) for rescale in RESCALES]
    found = [one.update(gramian, one.init(len(gramian))) for one in made]
    return [weights for weights, _ in found], found[0][1].converged


def solve(gramian, c=0.5, rescale=False):
    gramian = np.asarray(gramian)
    weights, converged = compiled(gramian, np.asarray(c, gramian.dtype))
    return np.asarray(weights[RESCALES.index(rescale)]), bool(converged)


def gramian(rows):
    exact = np.asarray(rows, np.float64)
    return (exact @ exact.T).astype(np.asarray(rows).dtype)


def direction(rows, c=0.5):
    weights, converged = solve(gramian(rows), c)
    assert converged
    assert np.all(weights >= 0)
    return weights.astype(np.float64) @ np.asarray(rows, np.float64)


def mean_of_the_rows(J, d):
    """Rows that add up to d: how a direction stands in for K gradients."""
    return np.tile(d / len(J), (len(J), 1))


@pytest.mark.parametrize("terms", sizes(2, slow=(3, 10)))
def test_agrees_with_equation_3(x64, record_deviation, terms):
    problem = Pulls(terms, STEPS, seed=terms)
    tx = optax.chain(reweight(cagrad(), terms), sum_terms(), optax.sgd(1e-3))
    stepped = flat.mixed(
        problem.numpy_gradients,
        lambda t, J: mean_of_the_rows(J, reference.direction(J, 0.5)),
    )
    expected = flat.descend(problem.start, stepped, STEPS, eta=1e-3)
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation("cagrad", deviation)
    assert deviation < 1e-9


def unique_weights(J, c):
    """The weights, from the direction: independent gradients have no others."""
    weights, _, rank, _ = np.linalg.lstsq(J.T, reference.direction(J, c), rcond=None)
    assert rank == np.count_nonzero(J.any(axis=1))
    return weights


# Of most others the gradients of ten terms are dependent in some step.
SEEDS = {2: 2, 3: 3, 10: 151}


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_in_front_of_adatask(x64, record_deviation, terms):
    problem = Pulls(terms, STEPS, seed=SEEDS[terms])
    tx = optax.chain(
        reweight(cagrad(), terms),
        per_term(optax.scale_by_rms(decay=0.9, eps=1e-6, eps_in_sqrt=False), terms),
        sum_terms(),
        optax.scale_by_learning_rate(0.02),
    )
    weighed = flat.mixed(
        problem.numpy_gradients, lambda t, J: _weigh(J, unique_weights(J, 0.5))
    )
    expected = adatask.rmsprop(
        problem.start,
        weighed,
        STEPS,
        terms,
        eta=0.02,
        gamma=0.9,
        epsilon=1e-6,
        inside=False,
    )
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation("cagrad + adatask rmsprop", deviation)
    assert deviation < 1e-9


def _weigh(J, weights):
    return J * weights[:, None]


@pytest.mark.parametrize("groups", _groups.SOME)
def test_each_group_has_its_own_direction(x64, groups):
    found = _groups.summed(_groups.run(cagrad(), groups))
    expected = _groups.summed(
        _groups.expected(
            lambda t, J: mean_of_the_rows(J, reference.direction(J, 0.5)), groups
        )
    )
    assert_close(found, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", _jacobians.WELL_POSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10, 64)))
def test_float32_directions(kind, terms, record_deviation):
    rng = np.random.default_rng(terms)
    errors = []
    for _ in range(5):
        rows = kind(rng, terms, 300).astype(np.float32)
        with jax.enable_x64(True):
            exact = direction(rows.astype(np.float64))
        gap = np.linalg.norm(direction(rows) - exact)
        errors.append(gap / np.linalg.norm(rows, axis=1).max())
    record_deviation("cagrad, float32, well posed", max(errors))
    assert max(errors) <= 5e-6


@pytest.mark.parametrize(
    "kind",
    # Opposed gradients have 0 in the hull: see the stationary points below.
    [k for k in _jacobians.WELL_POSED if k is not _jacobians.opposed]
    + [_jacobians.duplicated],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("terms", SIZES)
@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_no_direction_in_the_ball_is_better(x64, kind, terms, c, record_deviation):
    # The dual's value bounds what any direction can do for the worst term.
    rows = kind(np.random.default_rng(terms), terms, 300)
    d = direction(rows, c)
    g_0 = rows.mean(axis=0)
    radius = c * np.linalg.norm(g_0)
    assert np.linalg.norm(d - g_0) == pytest.approx(radius, rel=1e-9)
    weights, _ = solve(gramian(rows), c)
    z = weights - 1 / terms
    g_w = z @ rows / z.sum()
    bound = g_w @ g_0 + radius * np.linalg.norm(g_w)
    # Relative to what the shortest gradient can gain or lose at most.
    unit = np.linalg.norm(rows, axis=1).min() * np.linalg.norm(d)
    gap = (bound - np.min(rows @ d)) / unit
    record_deviation("cagrad, duality gap", gap)
    assert gap < 1e-9


def test_stationary_points_take_the_nearest_harmless_direction(x64):
    rows = np.array([[1.0, 0, 0], [-1, 0, 0], [0.2, 3, 0]])
    expected = reference.projection(
        rows / np.linalg.norm(rows, axis=1)[:, None], rows.mean(axis=0)
    )
    np.testing.assert_allclose(direction(rows, 0.5), expected, atol=1e-9)


def multipliers(rows, d, c):
    """The dual problem of the rows in units of their lengths, and d's multipliers."""
    lengths = np.linalg.norm(rows, axis=1)
    g_0 = rows.mean(axis=0)
    radius = c * np.linalg.norm(g_0)
    unit = rows / lengths[:, None]
    scaled, linear = unit @ unit.T, unit @ g_0 / radius
    z = np.linalg.lstsq(unit.T, (d - g_0) / radius, rcond=None)[0]
    return scaled, linear, lengths.min() / lengths, np.where(np.abs(z) < 1e-9, 0, z)


optimal = jax.jit(_cagrad._optimal)


def certified(scaled, linear, inverse, z, stationary, dtype):
    arrays = (np.asarray(one, dtype) for one in (scaled, linear, inverse, z))
    return bool(optimal(*arrays, np.asarray(stationary)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_wrong_multipliers_get_no_certificate(dtype):
    """Of right ones every direction in the ball is worse for some term: Eq. 3."""
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(10):
        rows = rng.normal(size=(4, 6)) * np.exp(rng.normal(size=(4, 1)))
        best = reference.direction(rows, 0.5)
        scaled, linear, inverse, right = multipliers(rows, best, 0.5)
        assert certified(scaled, linear, inverse, right, False, dtype)
        # Others of the same step's length: one term alone, all alike, or a little off.
        others = [*np.eye(4), np.ones(4), right + 0.2 * right.max() * rng.random(4)]
        for z in others:
            z = z / np.sqrt(z @ scaled @ z)
            # What each direction does for the worst term, in its units of the radius.
            gain = np.min((linear + scaled @ z) / inverse)
            most = np.min((linear + scaled @ right) / inverse)
            if gain < most - 0.01:
                refused += 1
                assert not certified(scaled, linear, inverse, z, False, dtype)
    assert refused > 40


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_only_the_nearest_harmless_direction_gets_a_certificate(dtype):
    rows = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 3, 0], [0, -0.8, 1]])
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    nearest = reference.projection(unit, rows.mean(axis=0))
    *problem, right = multipliers(rows, nearest, 0.5)
    # The first two cancel out: only their difference is known.
    right[:2] -= right[:2].min()
    assert certified(*problem, right, True, dtype)
    scaled, linear, _ = problem
    for factor, harmless in [(1.1, True), (0.9, False)]:  # too far, and not far enough
        assert (np.min(linear + factor * scaled @ right) >= -1e-12) == harmless
        assert not certified(*problem, factor * right, True, dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gramian_that_is_not_finite_gets_no_certificate(value):
    rows = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    for i, j in [(0, 0), (0, 1)]:
        products = np.array(gramian(rows))
        products[i, j] = products[j, i] = value
        _, converged = solve(products)
        assert not converged


@pytest.mark.parametrize("scale", [1e-15, 1e-10, 1.0, 1e5, 1e10, 1e15])
def test_scale_changes_nothing(scale):
    rows = np.random.default_rng(0).normal(size=(3, 70)).astype(np.float32)
    power = np.float32(2.0 ** np.round(np.log2(scale)))
    assert_close(solve(gramian(power * rows))[0], solve(gramian(rows))[0], rtol=1e-6)


def test_without_a_radius_it_is_the_mean():
    rows = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    weights, converged = solve(gramian(rows), 0.0)
    assert converged
    assert_close(weights, np.full(3, 1 / 3), rtol=1e-6)


def test_rescales_of_the_authors_code(x64):
    products = gramian(np.random.default_rng(0).normal(size=(3, 9)))
    plain, _ = solve(products, 0.4)
    for rescale, divisor in [(True, 1.16), ("linear", 1.4)]:
        weights, _ = solve(products, 0.4, rescale=rescale)
        assert_close(weights, plain / divisor, rtol=1e-12)


def test_equal_terms_lengthen_the_mean(x64):
    rows = np.tile(np.arange(1.0, 4.0), (3, 1))
    np.testing.assert_allclose(direction(rows, 0.5), 1.5 * rows[0], rtol=1e-9)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 2)),
        np.array([[0.0, 0], [1, 1], [-1, 0]]),
        np.array([[1.0, 1], [-1, -1], [0, 0]]),
        np.array([[1.0, 1], [-2, -2], [1, 1]]),
        np.array([[1.0, 1], [-3, -3], [1, 1]]),
        np.ones((3, 1)),
    ],
)
def test_degenerate_gradients_stay_finite(rows):
    weights, converged = solve(gramian(rows.astype(np.float32)))
    assert_finite(weights)
    assert converged
    assert np.all(weights >= 0)


def test_a_silent_term_is_left_out_of_the_minimum(x64):
    rows = np.array([[1.0, 0], [0, 2], [0, 0]])
    d, g_0 = direction(rows), rows.mean(axis=0)
    assert np.linalg.norm(d - g_0) == pytest.approx(0.5 * np.linalg.norm(g_0))
    np.testing.assert_allclose(d, reference.direction(rows, 0.5), rtol=1e-9)


def test_bad_hyperparameters_are_named(own_errors):
    with pytest.raises(ValueError, match="c must be") as caught:
        cagrad(-0.1)
    assert_message(caught.value, "cagrad", "[0, inf)", "-0.1")
    with pytest.raises(ValueError, match="rescale must be") as caught:
        cagrad(rescale="sqrt")
    assert_message(caught.value, "'linear'", "'sqrt'")
