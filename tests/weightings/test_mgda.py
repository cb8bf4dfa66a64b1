"""MGDA and its inexact form against Wolfe's algorithm in float64."""

import functools

import jax
import numpy as np
import pytest

from multiterm_optax import inexact_mgda, mgda, reweight
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references.frank_wolfe import frank_wolfe
from tests.references.min_norm import min_norm_point
from tests.weightings import _jacobians

ALWAYS = {"permutes": True, "invariant": True, "digits": 1e-6}
EXACT = {"simplex": True, "agrees": True, "shortest": True, **ALWAYS}
METHODS = {
    "mgda": Method(mgda, pareto=True, **EXACT),
    "mgda loss": Method(mgda, {"normalization": "loss"}, simplex=True, **ALWAYS),
    # Weights found for unit gradients multiply the gradients as they are: where two are
    # parallel, the weights are not unique and then neither is the direction.
    "mgda l2": Method(
        mgda, {"normalization": "l2"}, simplex=True, permutes=False, invariant=False
    ),
    "mgda loss+": Method(
        mgda, {"normalization": "loss+"}, simplex=True, permutes=False, invariant=False
    ),
    # It stops at directions shorter than its eps, and the flattest bowl of the battery
    # has the slope 0.2.
    "inexact_mgda": Method(
        inexact_mgda,
        {"eps": 1e-3},
        permutes=True,
        invariant=False,
        pareto=True,
        nearness=5e-3,
        digits=1e-6,
    ),
    "inexact_mgda, no error": Method(inexact_mgda, {"eps": 0.0}, **EXACT),
    "inexact_mgda loss": Method(
        inexact_mgda, {"eps": 0.1, "normalization": "loss"}, invariant=False
    ),
}

TERMS = sizes(2, 3, 64, slow=(10,))


def gramian(rows):
    """The gramian as exact as the dtype of the rows can hold it."""
    exact = np.asarray(rows, np.float64)
    return (exact @ exact.T).astype(np.asarray(rows).dtype)


@jax.jit
def compiled(products):
    weighting = mgda()
    weights, state = weighting.update(products, weighting.init(products.shape[0]))
    return weights, state.converged


def solve(products):
    weights, converged = compiled(products)
    return np.asarray(weights), bool(converged)


def direction_error(rows):
    """Error of the direction, in units of the longest gradient."""
    weights, converged = solve(gramian(rows))
    assert converged
    assert np.all(weights >= 0)
    assert float(np.sum(weights)) == pytest.approx(1.0, abs=1e-5)
    exact = np.asarray(rows, np.float64)
    found = weights.astype(np.float64) @ exact
    expected, _ = min_norm_point(exact)
    return np.linalg.norm(found - expected) / np.linalg.norm(exact, axis=1).max()


@pytest.mark.parametrize("kind", _jacobians.WELL_POSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("terms", TERMS)
def test_direction_of_well_posed_problems(kind, terms, rng, record_deviation):
    errors = [
        direction_error(kind(rng, terms, 300).astype(np.float32)) for _ in range(5)
    ]
    record_deviation("mgda, float32, well posed", max(errors))
    assert max(errors) <= 2e-6


@pytest.mark.parametrize("kind", _jacobians.DEGENERATE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("terms", TERMS)
def test_direction_of_degenerate_problems(kind, terms, rng, record_deviation):
    errors = [
        direction_error(kind(rng, terms, 300).astype(np.float32)) for _ in range(5)
    ]
    record_deviation("mgda, float32, degenerate", max(errors))
    assert max(errors) <= 2e-4


@functools.cache
def stage(terms):
    return jax.jit(reweight(mgda(), terms).update)


@pytest.mark.parametrize("kind", _jacobians.WELL_POSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("terms", sizes(3, slow=(64,)))
def test_direction_from_float32_gradients(kind, terms, rng, record_deviation):
    rows = kind(rng, terms, 300).astype(np.float32)
    grads = {"w": rows[:, :200].reshape(terms, 20, 10), "b": rows[:, 200:]}
    params = {name: np.zeros_like(leaf[0]) for name, leaf in grads.items()}
    _, state = stage(terms)(grads, reweight(mgda(), terms).init(params), params)
    expected, _ = min_norm_point(rows)
    found = np.asarray(state.weights, np.float64) @ rows
    error = np.linalg.norm(found - expected) / np.linalg.norm(rows, axis=1).max()
    record_deviation(f"reweight(mgda()), float32, {kind.__name__}", error)
    # Sums in float32 know a dot product to about 1e-6 of the two lengths. Gradients
    # that differ by a tenth of their length share out a tenth of it by differences a
    # tenth as long again, so that this comes back tenfold.
    assert error <= (1e-5 if kind is _jacobians.aligned else 2e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "kind",
    _jacobians.WELL_POSED + _jacobians.DEGENERATE,
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("terms", sizes(3, slow=(10,)))
def test_direction_in_float64(kind, terms, rng, record_deviation):
    error = direction_error(kind(rng, terms, 100))
    record_deviation("mgda, float64", error)
    assert error <= 1e-9


@pytest.mark.parametrize("factor", [1e-15, 1e-10, 1e10, 1e15])
@pytest.mark.parametrize("terms", TERMS)
def test_weights_do_not_depend_on_the_scale_of_all_gradients(factor, terms, rng):
    rows = _jacobians.agreeing(rng, terms, 100).astype(np.float32)
    plain, _ = solve(gramian(rows))
    scaled, _ = solve(gramian(rows * np.float32(factor)))
    np.testing.assert_allclose(scaled, plain, atol=2e-5)


def test_two_terms_follow_the_closed_form(rng):
    for _ in range(20):
        first, second = rng.normal(size=(2, 3)) * 10.0 ** rng.uniform(
            -3, 3, size=(2, 1)
        )
        apart = first - second
        expected = np.clip(-second @ apart / (apart @ apart), 0, 1)
        weights, _ = solve(gramian(np.stack([first, second]).astype(np.float32)))
        np.testing.assert_allclose(weights, [expected, 1 - expected], atol=2e-6)


def test_two_equal_gradients_get_one_half_each():
    weights, _ = solve(gramian(np.ones((2, 4), np.float32)))
    np.testing.assert_array_equal(weights, [0.5, 0.5])


@pytest.mark.parametrize("terms", [1, 2, 3, 64])
def test_all_gradients_zero(terms):
    weights, converged = solve(np.zeros((terms, terms), np.float32))
    np.testing.assert_allclose(weights, np.full(terms, 1 / terms), rtol=1e-6)
    assert converged


@pytest.mark.parametrize("terms", [2, 3, 64])
def test_a_zero_gradient_is_the_shortest(terms, rng):
    rows = rng.normal(size=(terms, 20)).astype(np.float32)
    rows[1] = 0
    weights, _ = solve(gramian(rows))
    np.testing.assert_array_equal(weights, np.eye(terms)[1])


def test_a_gradient_that_is_not_finite_is_reported_as_not_converged():
    _, converged = solve(np.full((3, 3), np.nan, np.float32))
    assert not converged


@jax.jit
def normalized(products, losses):
    """Weights by normalization, from one program."""

    def weights(kind):
        weighting = mgda(kind)
        return weighting.update(products, weighting.init(3), losses=losses)[0]

    return {kind: weights(kind) for kind in ("l2", "loss", "loss+")}


@pytest.mark.parametrize("kind", ["l2", "loss", "loss+"])
def test_normalizations_solve_for_the_scaled_gradients(kind, rng):
    # No gradient is so short that it is the direction whatever it is divided by.
    rows = _jacobians.generic(rng, 3, 50).astype(np.float32)
    rows *= np.float32([[1.0], [1.5], [0.7]])
    losses = np.array([0.5, 0.8, 0.6], np.float32)
    norms = np.linalg.norm(rows, axis=1)
    divisors = {"l2": norms, "loss": losses, "loss+": norms * losses}
    scaled = rows / divisors[kind][:, None]
    expected, _ = min_norm_point(scaled)
    found = normalized(gramian(rows), losses)
    size = np.linalg.norm(scaled, axis=1).max()
    np.testing.assert_allclose(found[kind] @ scaled, expected, atol=2e-6 * size)
    for other in found.keys() - {kind}:
        assert np.linalg.norm(found[other] @ scaled - expected) > 1e-2 * size, other


def test_normalization_by_losses_asks_for_losses():
    weighting = mgda("loss")
    with pytest.raises(ValueError, match="losses") as error:
        weighting.update(np.eye(2), weighting.init(2))
    assert_message(error.value, "mgda:", "reads the losses", "found none")


@pytest.mark.usefixtures("own_errors")
def test_normalization_is_one_of_the_choices():
    with pytest.raises(ValueError, match="normalization") as error:
        mgda("L2")
    assert_message(error.value, "mgda: normalization", "'l2'", "found 'L2'")


# --- Frank-Wolfe ---------------------------------------------------------------


def test_no_number_of_frank_wolfe_steps_finds_a_shorter_vector(rng):
    rows = _jacobians.generic(rng, 64, 50).astype(np.float32)
    exact = np.linalg.norm(np.asarray(solve(gramian(rows))[0], np.float64) @ rows)
    size = np.linalg.norm(rows, axis=1).max()
    lengths = [
        np.linalg.norm(frank_wolfe(rows, steps) @ rows) for steps in (10, 100, 10_000)
    ]
    assert np.all(np.diff(lengths) < 0)  # they come nearer
    assert exact <= lengths[-1] + 1e-6 * size
    assert lengths[0] > exact + 1e-3 * size  # and slowly


# --- inexact -----------------------------------------------------------------


@jax.jit
def inexact_update(products, state, eps):
    return inexact_mgda(eps).update(products, state)


def inexact(rows, eps, state=None):
    """One program for all bounds: each term is given its own."""
    terms = len(rows)
    state = inexact_mgda(0.0).init(terms) if state is None else state
    bounds = np.broadcast_to(np.float32(eps), terms)
    return inexact_update(gramian(rows), state, bounds)


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_the_step_is_taken_where_the_papers_condition_holds(terms, rng):
    taken = 0
    for _ in range(30):
        rows = _jacobians.agreeing(rng, terms, 20).astype(np.float32)
        eps = rng.uniform(0.0, 6.0, size=terms)
        expected, _ = min_norm_point(rows)
        along = rows.astype(np.float64) @ expected
        margin = along - eps * np.linalg.norm(expected)
        if np.min(np.abs(margin)) < 1e-4:  # too close to call in float32
            continue
        _, state = inexact(rows, eps)
        assert bool(state.ready) == bool(np.all(margin >= 0))
        taken += bool(state.ready)
    assert 0 < taken < 30


def test_no_error_bound_takes_every_step_of_mgda(rng):
    rows = _jacobians.generic(rng, 3, 40).astype(np.float32)
    weights, state = inexact(rows, 0.0)
    expected, _ = solve(gramian(rows))
    np.testing.assert_array_equal(weights, expected)
    assert bool(state.ready)
    assert int(state.skipped) == 0


@pytest.mark.parametrize("terms", sizes(3, slow=(2,)))
def test_without_a_bound_rounding_skips_no_step(terms):
    # The last gradient is opposed to a mixture of the others, so that the direction is
    # zero, and what it does for each term is rounding of either sign.
    rng = np.random.default_rng(terms)
    rows = rng.normal(size=(50, terms, 6))
    shares = rng.dirichlet(np.ones(terms - 1), size=50) * rng.uniform(0.5, 2, (50, 1))
    rows[:, -1] = -np.einsum("ti,tip->tp", shares, rows[:, :-1])
    for one in rows.astype(np.float32):
        weights, state = inexact(one, 0.0)
        assert bool(state.ready)
        np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)
        assert np.abs(np.asarray(weights, np.float64) @ one).max() < 1e-5


def test_at_the_optimum_the_condition_is_the_length_of_the_direction(rng):
    rows = _jacobians.agreeing(rng, 3, 30).astype(np.float32)
    length = np.linalg.norm(min_norm_point(rows)[0])
    assert bool(inexact(rows, 0.999 * length)[1].ready)
    assert not bool(inexact(rows, 1.001 * length)[1].ready)


def test_zero_gradients_and_large_bounds_do_no_harm():
    weights, state = inexact(np.zeros((3, 4), np.float32), 1e30)
    assert np.all(np.isfinite(weights))
    assert bool(state.ready)  # 0 >= 0: nothing is claimed, nothing moves


def test_skipped_steps_are_counted(rng):
    state = None
    for count in range(1, 4):
        rows = _jacobians.generic(rng, 3, 10).astype(np.float32)
        weights, state = inexact(rows, 1e6, state)
        assert int(state.skipped) == count
        np.testing.assert_array_equal(weights, np.zeros(3))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("eps", [-1.0, [0.1, -0.1, 0.1], float("nan"), float("inf")])
def test_bounds_are_not_negative(eps):
    with pytest.raises(ValueError, match="inexact_mgda: eps must be in"):
        inexact_mgda(eps)


@pytest.mark.usefixtures("own_errors")
def test_bounds_are_one_for_each_term():
    with pytest.raises(ValueError, match=r"eps .* \(3,\), .* found shape \(2,\)"):
        inexact_mgda([0.1, 0.2]).init(3)
