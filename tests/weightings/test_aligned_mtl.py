"""Aligned-MTL against the singular values of the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import aligned_mtl, reweight
from multiterm_optax.weightings import _jacobi
from tests._arguments import ByTerm
from tests._asserts import assert_message
from tests._methods import Method
from tests.references import aligned_mtl as reference
from tests.weightings import _awkward

METHODS = {
    "aligned_mtl": Method(aligned_mtl),
    "aligned_mtl, median": Method(
        aligned_mtl,
        {"scale": "median", "preference": ByTerm((1.0, 2.0, 0.5))},
        permutes=False,
    ),
}
SCALES = ["min", "median", "rmse"]
BATCH = len(_awkward.ROWS)


@jax.jit
def compiled(gramians, preference):
    """All scales at once."""

    def one(gramian):
        return [
            _awkward.step(aligned_mtl(scale, preference), gramian)[0]
            for scale in SCALES
        ]

    return jax.vmap(one)(gramians)


def solve(rows, preference=None):
    """Weights by scale."""
    rows = np.asarray(rows)
    if preference is None:
        preference = np.full(rows.shape[1], 1 / rows.shape[1])
    found = compiled(_awkward.gramians(rows), np.asarray(preference, rows.dtype))
    return dict(zip(SCALES, map(np.asarray, found), strict=True))


def full_rank(seed, terms, count):
    """Random gradients, lengths six orders of magnitude apart."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        rows = rng.normal(size=(terms, 2 * terms)) + rng.choice([0, 1, 3]) * rng.normal(
            size=2 * terms
        )
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        if np.linalg.svd(rows, compute_uv=False).min() > 0.05:
            found.append(rows * 10.0 ** rng.uniform(-3, 3, (terms, 1)))
    return np.stack(found)


def deviations(rows, preference=None):
    found, largest = solve(rows, preference), 0.0
    for scale in SCALES:
        for one, weights in zip(rows.astype(np.float64), found[scale], strict=True):
            expected = reference.weights(one, scale, preference)
            gap = np.linalg.norm((weights - expected) @ one)
            largest = max(largest, gap / np.linalg.norm(expected @ one))
    return largest


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(3, BATCH), (10, 8)])
def test_agrees_with_the_singular_values(terms, count, record_deviation):
    preference = np.random.default_rng(0).uniform(size=terms)
    deviation = deviations(full_rank(terms, terms, count), preference)
    record_deviation("aligned_mtl", deviation)
    # Where lengths are 1e6 apart, the reference knows 10 digits of the shortest.
    assert deviation < 1e-9


def test_agrees_with_the_singular_values_in_single_precision(record_deviation):
    deviation = deviations(full_rank(0, 3, BATCH).astype(np.float32))
    record_deviation("aligned_mtl, float32", deviation)
    # The cosines are known to a rounding, and an eigenvalue to 1 / 0.05^2 of it.
    assert deviation < 2e-4


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("terms", "count"), [(2, 2000), (3, 2000), (8, 500), (24, 50)])
def test_thousands_of_problems(terms, count):
    assert deviations(full_rank(100 + terms, terms, count)) < 1e-8


def test_known_numbers():
    # Beside gradients of zero, so that they need no program of their own.
    rows = np.zeros((1, 4, 4), np.float32)
    rows[0, :2, :3] = [[-4, 1, 1], [6, 1, 1]]
    weights = solve(rows, np.array([0.5, 0.5, 0.0, 0.0]))["min"][0]
    np.testing.assert_allclose(weights, [0.5591, 0.4083, 0.0, 0.0], atol=5e-5)


def test_aligned_gradients_are_orthogonal_and_of_one_length():
    rows = full_rank(1, 3, BATCH).astype(np.float32)
    # Each term alone is what its gradient becomes.
    parts = [solve(rows, row) for row in np.eye(3)]
    for scale in SCALES:
        mixing = np.stack([part[scale] for part in parts], axis=1).astype(np.float64)
        aligned = mixing @ rows.astype(np.float64)
        gramian = aligned @ aligned.swapaxes(1, 2)
        values = np.linalg.svd(rows.astype(np.float64), compute_uv=False) ** 2
        expected = {"min": values.min(1), "median": np.median(values, 1)}
        expected["rmse"] = values.mean(1)
        size = expected[scale][:, None, None]
        np.testing.assert_allclose(gramian / size, [np.eye(3)] * BATCH, atol=3e-4)


def test_the_mean_of_the_middle_two_is_the_median():
    rows = np.diag([1.0, 2.0, 3.0, 10.0])[None].astype(np.float32)
    root = np.sqrt((4 + 9) / 2)
    expected = root / np.array([1, 2, 3, 10]) / 4
    np.testing.assert_allclose(solve(rows)["median"][0], expected, rtol=1e-6)


@pytest.mark.parametrize("terms", [3, pytest.param(16, marks=pytest.mark.slow), 33])
def test_eigenvectors_by_rotations(terms):
    """In float32 as good as they can be, with lengths 1e12 apart."""
    rng = np.random.default_rng(terms)
    rows = rng.normal(size=(terms, 2 * terms)).astype(np.float32)
    units = rows / np.linalg.norm(rows, axis=1)[:, None]
    lengths = np.logspace(-6, 6, terms).astype(np.float32)[rng.permutation(terms)]
    found = jax.jit(_jacobi.decompose)((units @ units.T), lengths)
    vectors, roots = np.float64(found.vectors), np.float64(found.roots)
    assert found.kept.sum() == terms
    vectors, roots = vectors[found.kept], roots[found.kept]
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(terms), atol=1e-5)
    # V^T S V is the gramian, entry by entry.
    again = (vectors.T * roots) @ (vectors * roots[:, None])
    cosines = again / lengths / lengths[:, None]
    np.testing.assert_allclose(cosines, units @ units.T, atol=1e-5)


@pytest.fixture(scope="module")
def awkward():
    return {
        scale: _awkward.solutions(lambda rows: (solve(rows), ()), scale)
        for scale in _awkward.SCALES
    }


@pytest.mark.parametrize("size", _awkward.SCALES)
@pytest.mark.parametrize("name", _awkward.ROWS)
def test_awkward_gradients(name, size, awkward):
    if "nearly" in name:
        for weights in found_by(awkward, name, size).values():
            assert np.all(np.isfinite(weights))
        return
    rows = awkward[size][name][0] / size
    # Singular values above rounding only: of the unit rows, as lengths may be apart.
    units = np.linalg.norm(rows, axis=1)
    rank = np.linalg.matrix_rank(rows / np.where(units > 0, units, 1)[:, None], 1e-3)
    vectors, roots, _ = np.linalg.svd(rows)
    vectors, roots = vectors[:, :rank], roots[:rank]
    for scale, weights in found_by(awkward, name, size).items():
        assert np.all(np.isfinite(weights))
        if rank == 0:
            assert not weights.any()
            continue
        values = roots**2
        chosen = {"min": values.min(), "median": np.median(values)}
        chosen["rmse"] = values.mean()
        root = np.sqrt(chosen[scale])
        expected = root * vectors @ (vectors.T @ np.full(3, 1 / 3) / roots)
        atol = 1e-5 * root / roots.min()
        np.testing.assert_allclose(
            weights @ rows, expected @ rows, rtol=1e-6, atol=atol
        )


def found_by(awkward, name, size):
    return awkward[size][name][1]


def test_bad_arguments(own_errors):
    with pytest.raises(ValueError, match="scale") as error:
        aligned_mtl("max")
    assert_message(error, "aligned_mtl", "scale", "'median'", "'max'")
    with pytest.raises(ValueError, match="preference") as error:
        aligned_mtl(preference=jnp.array([1.0, -1.0]))
    assert_message(error, "aligned_mtl", "preference", "-1")
    tx = reweight(aligned_mtl(preference=jnp.ones(3)), num_terms=2)
    with pytest.raises(ValueError, match="preference") as error:
        tx.init(jnp.zeros(2))
    assert_message(error, "aligned_mtl", "preference", "(2,)", "(3,)")
