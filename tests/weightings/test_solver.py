"""The K x K solver against independent ones: active sets, and SciPy's on the rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

from multiterm_optax._nnqp import solve
from tests.weightings import _jacobians
from tests.weightings._runs import filled

KINDS = _jacobians.WELL_POSED + _jacobians.DEGENERATE

TOGETHER = 64
compiled = jax.jit(jax.vmap(solve))


def solve_all(gramians, b, q):
    """Solutions of all problems, as many at a time as one program of a size takes."""
    given = [filled(each, TOGETHER) for each in (gramians, b, q)]
    starts = range(0, len(given[0]), TOGETHER)
    parts = [compiled(*(each[i : i + TOGETHER] for each in given)) for i in starts]
    return jax.tree.map(lambda *part: np.concatenate(part)[: len(gramians)], *parts)


def by_active_sets(rows, combination):
    """Weights of the projection on the dual cone: the one subset that is optimal."""
    gramian, start = rows @ rows.T, np.asarray(combination, np.float64)
    best, found = np.inf, None
    for size in range(len(rows) + 1):
        for active in map(list, itertools.combinations(range(len(rows)), size)):
            weights = start.copy()
            inside = gramian[np.ix_(active, active)]
            weights[active] += np.linalg.solve(inside, -gramian[active] @ start)
            length = weights @ gramian @ weights
            feasible = np.all(weights >= start - 1e-12)
            if feasible and length < best:
                best, found = length, weights
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_problem_that_makes_an_interior_point_go_in_circles(dtype):
    rows = _jacobians.CIRCLING
    starts = np.vstack([np.eye(5) / 5, np.full(5, 0.2)])
    expected = np.stack([by_active_sets(rows, start) for start in starts])
    assert np.allclose(
        expected[:5].sum(0), [0.2780, 0.7316, 0.2, 0.2, 5.7761], atol=5e-5
    )
    # The projections of each gradient and of their mean, with gradients of length 1.
    lengths = np.linalg.norm(rows, axis=1)
    units = rows / lengths[:, None]
    gramians = np.stack([units @ units.T] * 6).astype(dtype)
    q = -(starts * lengths @ units @ units.T).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found = solve_all(gramians, np.zeros_like(q), q)
    assert found.converged.all()
    apart = (starts + found.z.astype(np.float64) / lengths - expected) @ rows
    bound = (1e-6 if dtype == np.float64 else 2e-4) * lengths.max()
    assert np.linalg.norm(apart[:5].sum(axis=0)) <= bound
    assert np.linalg.norm(apart[5]) <= bound


def random_rows(rng, terms, kind):
    """Gradients of length 1, badly conditioned in one way or another."""
    size = int(rng.integers(2, 2 * terms + 2))
    rows = rng.normal(size=(terms, size))
    if kind == "columns":
        rows *= 10.0 ** rng.uniform(-4, 0, size)
    elif kind == "common":
        rows += rng.normal() * 3 * rng.normal(size=size)
    elif kind == "rank":
        rank = int(rng.integers(1, max(size, 2)))
        rows = rng.normal(size=(terms, rank)) @ rng.normal(size=(rank, size))
    elif kind == "near":
        # Pairs that are parallel or opposed but for a thousandth of their length.
        pairs = terms // 2
        signs = rng.choice([-1.0, 1.0], size=(pairs, 1))
        rows[:pairs] = signs * rows[pairs : 2 * pairs] + 1e-3 * rows[:pairs]
    elif kind == "integers":
        rows = np.round(2 * rows)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


ILL_CONDITIONED = ["generic", "columns", "common", "rank", "near", "integers"]


def largest_gap(terms, count, dtype, seed):
    """The largest error of a direction, in longest gradients, and of ``converged``."""
    rng = np.random.default_rng(seed)
    rows = [
        random_rows(rng, terms, ILL_CONDITIONED[i % len(ILL_CONDITIONED)])
        for i in range(count)
    ]
    gramians = np.stack([r @ r.T for r in rows]).astype(dtype)
    zero = np.diagonal(gramians, axis1=1, axis2=2) == 0
    gramians = gramians + zero[:, :, None] * np.eye(terms, dtype=dtype)
    ones = np.ones((count, terms), dtype)
    # The projection of a gradient on the dual cone, and the min-norm point.
    cone = solve_all(gramians, 0 * ones, -gramians[:, 0])
    hull = solve_all(gramians, ones, ones)
    assert np.all(cone.z >= 0)
    gap = 0.0
    for i, r in enumerate(rows):
        budget = 50 * terms
        z, _ = scipy.optimize.nnls(r.T, -r[0], maxiter=budget)
        gap = max(gap, np.linalg.norm((np.float64(cone.z[i]) * ~zero[i] - z) @ r))
        if not zero[i].any():
            both = np.vstack([r.T, np.ones(terms)])
            target = np.r_[np.zeros(r.shape[1]), 1.0]
            z, _ = scipy.optimize.nnls(both, target, maxiter=budget)
            found = np.float64(hull.z[i])
            gap = max(gap, np.linalg.norm((found / found.sum() - z / z.sum()) @ r))
    return gap, bool(np.all(cone.converged) and np.all(hull.converged))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("terms", "count"),
    [(5, 900), (10, 300), pytest.param(24, 60, marks=pytest.mark.slow)],
)
def test_hundreds_of_ill_conditioned_problems(terms, count):
    gap, converged = largest_gap(terms, count, np.float64, seed=terms)
    assert converged
    assert gap < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("terms", "count"), [(2, 900), (3, 900), (8, 900), (16, 600), (40, 180), (128, 30)]
)
def test_thousands_of_ill_conditioned_problems(terms, count, seed):
    gap, converged = largest_gap(terms, count, np.float64, seed=(terms, seed))
    assert converged
    assert gap < 1e-6


def unit_gramian(kind, rng, terms, parameters, dtype=np.float32):
    rows = kind(rng, terms, parameters)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows @ rows.T).astype(dtype)


def both_programs(gramians):
    """The min-norm points, and the projections of the first gradients, of each."""
    ones, first = np.ones_like(gramians[:, 0]), -gramians[:, 0]
    every = np.concatenate([gramians, gramians])
    given = np.concatenate([ones, 0 * ones]), np.concatenate([ones, first])
    return solve_all(every, *given)


@pytest.mark.parametrize("terms", [5, pytest.param(10, marks=pytest.mark.slow), 64])
def test_the_solver_takes_at_most_twenty_iterations(terms):
    def gramians(kind):
        rng = np.random.default_rng(0)
        sizes = (300, max(terms // 3, 1))
        return [unit_gramian(kind, rng, terms, size) for size in sizes]

    found = both_programs(np.concatenate([gramians(kind) for kind in KINDS]))
    assert found.converged.all()
    assert found.iterations.max() <= 20


def test_the_solver_finds_an_optimum_at_zero(rng):
    # No conflict: nothing is to be added. Also where q is small against 1.
    gramian = unit_gramian(_jacobians.aligned, rng, 10, 300)
    scales = np.float32([[1e-6], [1.0], [1e6]])
    q = -scales * gramian[0]
    found = solve_all(np.stack([gramian] * 3), np.zeros_like(q), q)
    assert found.converged.all()
    assert np.all(found.z <= 1e-6 * scales)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", [pytest.param(3, marks=pytest.mark.slow), 10])
def test_float64_takes_few_iterations_more(terms):
    # Opposed gradients meet in a point where a weight and its slack are both zero.
    gramians = []
    for kind in _jacobians.WELL_POSED:
        rng = np.random.default_rng(0)
        gramians += [unit_gramian(kind, rng, terms, 300, np.float64) for _ in range(5)]
    found = both_programs(np.stack(gramians))
    assert found.z.dtype == np.float64
    assert found.converged.all()
    assert found.iterations.max() <= 25


@pytest.mark.parametrize(
    "terms",
    [
        pytest.param(4, marks=pytest.mark.slow),
        10,
        pytest.param(20, marks=pytest.mark.slow),
        64,
    ],
)
def test_a_batch_equals_its_problems(terms, rng):
    # The projections of all gradients on the dual cone.
    gramian = unit_gramian(_jacobians.agreeing, rng, terms, 300)
    zeros = np.zeros_like(gramian)
    batch = solve_all(np.stack([gramian] * terms), zeros, -gramian)
    assert batch.converged.all()
    for i in range(min(terms, 20)):
        alone = solve(gramian, zeros[i], -gramian[i])
        np.testing.assert_allclose(batch.z[i], alone.z, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [5, 17])
def test_batches_of_batches_equal_their_problems(terms, rng):
    # UPGrad in groups: each has a gramian that its projections share.
    kind = _jacobians.agreeing
    gramians = np.stack([unit_gramian(kind, rng, terms, 300) for _ in range(2)])
    zeros = np.zeros(terms, np.float32)
    inner = jax.vmap(solve, in_axes=(None, None, 0))
    batch = jax.jit(jax.vmap(inner, in_axes=(0, None, 0)))(gramians, zeros, -gramians)
    assert batch.z.shape == (2, terms, terms)
    assert batch.converged.shape == (2, terms)
    assert batch.converged.all()
    for i in range(2):
        for j in range(terms):
            alone = solve(gramians[i], zeros, -gramians[i, j])
            np.testing.assert_allclose(batch.z[i, j], alone.z, atol=2e-5)


def test_problems_that_are_done_wait_for_the_others(rng):
    # Iteration counts differ, and each problem keeps its own.
    gramian = unit_gramian(_jacobians.agreeing, rng, 10, 300)
    q = np.stack([-gramian[0], np.zeros(10), np.ones(10)]).astype(np.float32)
    batch = solve_all(np.stack([gramian] * 3), 0 * q, q)
    alone = [solve(gramian, 0 * each, each) for each in q]
    counts = [int(each.iterations) for each in alone]
    assert len(set(counts)) > 1
    np.testing.assert_allclose(batch.iterations, counts, atol=1)
    for i, each in enumerate(alone):
        np.testing.assert_allclose(batch.z[i], each.z, atol=2e-5)


def test_no_derivative_flows_through_a_batch(rng):
    gramian = unit_gramian(_jacobians.agreeing, rng, 4, 300)

    def total(c):
        batch = jax.vmap(solve, in_axes=(None, None, 0))(c, jnp.zeros(4), -c)
        return jnp.sum(batch.z)

    @jax.jit
    def derivatives(c):
        return *jax.jvp(total, (c,), (c,)), jax.grad(total)(c)

    value, tangent, gradient = derivatives(gramian)
    assert value > 0
    assert tangent == 0
    assert not np.any(gradient)
