"""The K x K solver: few iterations, and every optimum found, one at zero too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax._nnqp import solve
from tests.weightings import _jacobians

KINDS = _jacobians.WELL_POSED + _jacobians.DEGENERATE


def unit_gramian(kind, rng, terms, parameters):
    rows = kind(rng, terms, parameters)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return jnp.asarray((rows @ rows.T).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("terms", [3, 10, 64])
def test_the_solver_takes_at_most_twenty_iterations(kind, terms, rng):
    ones, zeros = jnp.ones(terms), jnp.zeros(terms)
    for parameters in (300, max(terms // 3, 1)):
        gramian = unit_gramian(kind, rng, terms, parameters)
        min_norm = solve(gramian, ones, ones)
        assert min_norm.converged
        assert min_norm.iterations <= 20
        # The projection of the first gradient on the dual cone.
        dual = solve(gramian, zeros, -gramian[0])
        assert dual.converged
        assert dual.iterations <= 20


def test_the_solver_finds_an_optimum_at_zero(rng):
    # No conflict: nothing is to be added. Also where q is small against 1.
    gramian = unit_gramian(_jacobians.aligned, rng, 10, 300)
    for scale in (1e-6, 1.0, 1e6):
        found = solve(gramian, jnp.zeros(10), -scale * gramian[0])
        assert found.converged
        assert float(jnp.max(found.z)) <= 1e-6 * scale


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", _jacobians.WELL_POSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("terms", [3, 10])
def test_float64_takes_few_iterations_more(kind, terms, rng):
    # Opposed gradients meet in a point where a weight and its slack are both zero.
    ones, zeros = jnp.ones(terms), jnp.zeros(terms)
    for _ in range(5):
        rows = kind(rng, terms, 300)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        gramian = jnp.asarray(rows @ rows.T)
        assert gramian.dtype == jnp.float64
        for b, q in ((ones, ones), (zeros, -gramian[0])):
            found = solve(gramian, b, q)
            assert found.converged
            assert found.iterations <= 25


@pytest.mark.parametrize("terms", [4, 7, 10, 20])
def test_a_batch_equals_its_problems(terms, rng):
    # The projections of all gradients on the dual cone, as UPGrad asks for.
    gramian = unit_gramian(_jacobians.agreeing, rng, terms, 300)
    zeros = jnp.zeros((terms, terms))
    batch = jax.vmap(solve, in_axes=(None, 0, 0))(gramian, zeros, -gramian)
    assert batch.converged.all()
    for i in range(terms):
        alone = solve(gramian, zeros[i], -gramian[i])
        np.testing.assert_allclose(batch.z[i], alone.z, atol=2e-5)


@pytest.mark.parametrize("terms", [5, 17])
def test_batches_of_batches_equal_their_problems(terms, rng):
    # UPGrad in groups: each has a gramian that its projections share.
    kind = _jacobians.agreeing
    gramians = jnp.stack([unit_gramian(kind, rng, terms, 300) for _ in range(2)])
    zeros = jnp.zeros(terms)
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
    gramian = unit_gramian(_jacobians.agreeing, rng, 6, 300)
    q = jnp.stack([-gramian[0], jnp.zeros(6), jnp.ones(6)])
    batch = jax.vmap(solve, in_axes=(None, None, 0))(gramian, jnp.zeros(6), q)
    alone = [solve(gramian, jnp.zeros(6), each) for each in q]
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

    value, tangent = jax.jvp(total, (gramian,), (gramian,))
    assert value > 0
    assert tangent == 0
    assert not jax.grad(total)(gramian).any()
