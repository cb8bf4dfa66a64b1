"""Programs that share a gramian: by their faces, against SciPy's active set."""

import jax
import numpy as np
import pytest
import scipy

from multiterm_optax import _faces, _nnqp
from tests.weightings import _jacobians
from tests.weightings.test_solver import ILL_CONDITIONED, random_rows, unit_gramian

# In float32 all problems have as many terms, so that two programs serve them.
TERMS = 60


@jax.jit
def _by_faces(c, q):
    return _faces.solve_each(c, q)


def by_faces(c, q):
    return jax.tree.map(np.asarray, _by_faces(c, q))


def solve_each(c, q):
    return jax.tree.map(np.asarray, _nnqp.solve_each(c, q))


def combined(rng, terms, number):
    """Gradients themselves, their means, and sums of which few make most."""
    if number % 3 == 0:
        return np.eye(terms)
    if number % 3 == 1:
        return rng.dirichlet(np.ones(terms), size=terms)
    parts = np.exp(3 * rng.normal(size=(terms, terms)))
    return parts / parts.max(axis=1, keepdims=True)


def largest_gaps(terms, count, seed, each):
    """The largest errors of directions, of all problems and of those the faces solve.

    Also whether all converged, and the share that the faces solve.
    """
    rng = np.random.default_rng(seed)
    gap, by_face, converged, solved = 0.0, 0.0, True, []
    for number in range(count):
        kind = ILL_CONDITIONED[number % len(ILL_CONDITIONED)]
        rows = random_rows(rng, terms, kind)
        silent = ~rows.any(axis=1)
        gramian = rows @ rows.T + np.diag(1.0 * silent)
        starts = combined(rng, terms, number // len(ILL_CONDITIONED)) * ~silent
        q = -starts @ gramian
        # Starts that cancel but for roundings.
        q[np.abs(q) < 1e-14 * terms] = 0
        found = solve_each(gramian, q)
        size = np.maximum(np.abs(q).max(axis=1, keepdims=True), 1e-300)
        faces = by_faces(gramian, q / size)
        assert np.all(found.z >= 0)
        assert np.all(faces.z >= 0)
        converged &= bool(found.converged.all())
        solved.append(np.mean(faces.solved))
        for i in rng.permutation(terms)[:each]:
            start = starts[i] @ rows
            unit = np.linalg.norm(start) or 1.0
            z, _ = scipy.optimize.nnls(rows.T, -start / unit, maxiter=100 * terms)
            z = z * unit

            def error(found, z=z, rows=rows, silent=silent):
                return np.linalg.norm((found * ~silent - z) @ rows)

            gap = max(gap, error(found.z[i]))
            if faces.solved[i]:
                by_face = max(by_face, error(size[i] * faces.z[i]))
    return gap, by_face, converged, np.mean(solved)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("terms", "count", "each"),
    [
        (20, 36, 8),
        pytest.param(17, 360, 17, marks=pytest.mark.slow),
        pytest.param(33, 180, 16, marks=pytest.mark.slow),
        pytest.param(64, 36, 16, marks=pytest.mark.slow),
    ],
)
def test_ill_conditioned_problems(terms, count, each, record_deviation):
    gap, by_face, converged, solved = largest_gaps(terms, count, terms, each)
    record_deviation("upgrad, many terms", gap)
    assert converged
    assert gap < 1e-6
    assert by_face < 1e-6
    # Of problems that are made to be hard.
    assert solved > 0.5


@pytest.mark.parametrize("kind", _jacobians.WELL_POSED, ids=lambda kind: kind.__name__)
def test_well_posed_problems_are_solved_by_their_faces(kind, rng):
    gramian = unit_gramian(kind, rng, TERMS, 400)  # the last of them by themselves
    found = by_faces(gramian, -gramian)
    assert found.solved.all()
    assert found.iterations.max() <= 60


def test_the_last_problems_are_solved_as_if_alone():
    # Lengths in other directions fall like 1/n: some problems take twice as long.
    rows = np.random.default_rng(2).normal(size=(TERMS, TERMS))
    rows /= np.arange(1, TERMS + 1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gramian = np.float32(rows @ rows.T)
    found = by_faces(gramian, -gramian)
    assert found.solved.all()
    assert found.iterations.min() < found.iterations.max() / 2
    for i in np.argsort(found.iterations)[-3:]:
        z, _ = scipy.optimize.nnls(rows.T, -rows[i])
        assert np.linalg.norm((np.float64(found.z[i]) - z) @ rows) < 1e-3


def test_what_is_solved_meets_the_conditions(rng):
    # Also where half of the problems are not: verified in twice the precision.
    gramian = unit_gramian(_jacobians.rank_deficient, rng, TERMS, 400)
    found = by_faces(gramian, -gramian)
    z, c = np.asarray(found.z, np.float64), np.asarray(gramian, np.float64)
    slack = z @ c + c
    wrong = np.where(z > 0, np.abs(slack), np.maximum(-slack, 0)).max(axis=1)
    eps = np.finfo(np.float32).eps
    met = wrong <= 2.1 * eps * (1 + z.sum(axis=1))
    assert met[found.solved].all()


def test_the_residual_has_more_than_the_working_precision(rng):
    c = unit_gramian(_jacobians.agreeing, rng, 50, 300)
    z = np.exp(4 * rng.normal(size=(50, 50))).astype(np.float32)
    exact = z.astype(np.float64) @ np.asarray(c, np.float64)
    q = exact.astype(np.float32)
    found = jax.jit(_faces._residual)(c, z, q)
    apart = np.abs(found - (q - exact)).max(axis=1) / z.sum(axis=1)
    assert apart.max() < 0.05 * np.finfo(np.float32).eps


def test_no_conflict_takes_no_iteration(rng):
    gramian = np.abs(unit_gramian(_jacobians.agreeing, rng, TERMS, 300))
    found = by_faces(gramian, -gramian)
    assert found.solved.all()
    assert not found.iterations.any()
    assert not found.z.any()


def test_what_the_faces_leave_is_solved_a_few_at_a_time(rng):
    gramian = unit_gramian(_jacobians.generic, rng, TERMS, 90)
    expected = by_faces(gramian, -gramian)
    assert expected.solved.all()

    @jax.jit
    def rest(c, q, found):
        return _nnqp._remaining(_nnqp._method(c, 0 * c[0]), q, found)

    kept = np.arange(TERMS) == 7
    assert _nnqp._TOGETHER < TERMS - 1
    found = rest(gramian, -gramian, expected._replace(z=0 * expected.z, solved=kept))
    assert found.converged.all()
    z = np.asarray(found.z)
    np.testing.assert_allclose(z, np.where(kept[:, None], 0, expected.z), atol=2e-5)
    assert not z[7].any()


@pytest.mark.usefixtures("x64")
def test_numbers_that_are_not_finite_do_not_converge(rng):
    gramian = unit_gramian(_jacobians.generic, rng, 20, 40, np.float64)
    broken = gramian.copy()
    broken[3, 4] = np.nan
    found = solve_each(gramian, -broken)
    assert np.flatnonzero(~found.converged).tolist() == [3]
    assert not solve_each(broken, -broken).converged.all()


@pytest.mark.usefixtures("x64")
def test_a_batch_of_gramians_equals_its_problems(rng):
    kind = _jacobians.generic
    gramians = np.stack([unit_gramian(kind, rng, 20, 30, np.float64) for _ in "ab"])
    batch = jax.jit(jax.vmap(_nnqp.solve_each))(gramians, -gramians)
    assert batch.converged.all()
    for gramian, z in zip(gramians, np.asarray(batch.z), strict=True):
        np.testing.assert_allclose(z, solve_each(gramian, -gramian).z, atol=1e-12)
