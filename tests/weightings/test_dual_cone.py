"""UPGrad and DualProj against SciPy's active set, and their own promises."""

import functools

import jax
import numpy as np
import pytest

from multiterm_optax import dual_proj, reweight, upgrad
from tests._asserts import assert_message
from tests._methods import Method
from tests.references import dual_cone
from tests.weightings import _jacobians, _properties, _steps

KINDS = _jacobians.WELL_POSED + _jacobians.DEGENERATE
FACTORIES = {"upgrad": upgrad, "dual_proj": dual_proj}
METHODS = {
    name: Method(factory, permutes=True, invariant=True, agrees=True, digits=1e-6)
    for name, factory in FACTORIES.items()
} | {
    "upgrad, rows": Method(
        upgrad, {"rows": True}, permutes=True, invariant=True, agrees=True, digits=1e-6
    )
}
REFERENCES = {"upgrad": dual_cone.upgrad, "dual_proj": dual_cone.projected}

each_method = pytest.mark.parametrize("name", FACTORIES)


# DualProj solves one problem whatever their number; UPGrad has another way for many.
SIZES = [
    pytest.param(terms, name, marks=[pytest.mark.slow] if slow else [])
    for terms, name, slow in [
        (2, "upgrad", True),
        (2, "dual_proj", True),
        (3, "upgrad", False),
        (3, "dual_proj", False),
        (24, "upgrad", False),
        (24, "dual_proj", True),
    ]
]


@functools.cache
def compiled(name, preferred):
    """One program for all gramians of a shape, and for all preferences."""

    @jax.jit
    def update(gramian, preference):
        weighting = FACTORIES[name](preference if preferred else None)
        return weighting.update(gramian, weighting.init(len(gramian)))

    return update


def weights_of(name, rows, preference=None):
    """Weights and state, from the preference as a traced argument, if there is one."""
    exact = np.asarray(rows, np.float64)
    gramian = (exact @ exact.T).astype(rows.dtype)
    given = np.ones(len(rows)) if preference is None else np.asarray(preference)
    update = compiled(name, preference is not None)
    return jax.tree.map(np.asarray, update(gramian, given.astype(rows.dtype)))


@pytest.mark.parametrize(("terms", "name"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_direction_in_double_precision(x64, name, terms, kind):
    rows = kind(np.random.default_rng(terms), terms, 2 * terms)
    equal = np.full(terms, 1 / terms)  # in single precision it is the default
    weights, state = weights_of(name, rows, equal)
    expected = REFERENCES[name](rows, equal)
    found = weights @ rows
    assert state.converged
    # The gramian squares the condition of the gradients: half the digits remain where
    # they are dependent.
    apart = np.abs(found - expected).max() / _properties.longest(rows)
    assert apart < 1e-7


@pytest.mark.parametrize(("terms", "name"), SIZES)
@pytest.mark.parametrize("kind", _jacobians.WELL_POSED)
def test_direction_in_single_precision(name, terms, kind):
    rows = kind(np.random.default_rng(terms), terms, 2 * terms).astype(np.float32)
    weights, _ = weights_of(name, rows)
    expected = REFERENCES[name](rows, np.full(terms, 1 / terms))
    found = weights.astype(np.float64) @ rows
    apart = np.abs(found - expected).max() / _properties.longest(rows)
    assert apart < 2e-5


@each_method
def test_where_an_interior_point_goes_in_circles(x64, name):
    rows, equal = _jacobians.CIRCLING, np.full(5, 0.2)
    weights, state = weights_of(name, rows, equal)
    assert state.converged
    gap = np.linalg.norm(weights @ rows - REFERENCES[name](rows, equal))
    assert gap <= 1e-6 * _properties.longest(rows)
    if name == "upgrad":  # by all active sets, in tests/weightings/test_solver.py, too
        expected = [0.2780, 0.7316, 0.2, 0.2, 5.7761]
        np.testing.assert_allclose(weights, expected, atol=5e-5)


@each_method
def test_preference(x64, name):
    rows = _jacobians.generic(np.random.default_rng(0), 3, 6)
    preference = (0.0, 1.0, 3.0)
    weights, _ = weights_of(name, rows, preference)
    expected = REFERENCES[name](rows, preference)
    np.testing.assert_allclose(weights @ rows, expected, atol=1e-9)


def test_rows_are_the_projections_of_each_gradient(x64):
    preference = (0.5, 1.0, 3.0)
    rows = _jacobians.generic(np.random.default_rng(3), 3, 6)
    weighting = upgrad(preference, rows=True)
    mixing, state = jax.jit(weighting.update)(rows @ rows.T, weighting.init(3))
    assert np.min(mixing) >= 0
    for i, row in enumerate(np.asarray(mixing) @ rows):
        one = np.eye(3)[i] * preference[i]
        np.testing.assert_allclose(row, dual_cone.upgrad(rows, one), atol=1e-9)
    assert float(state.conflicts) == np.mean((rows @ rows.T)[np.triu_indices(3, 1)] < 0)


def test_rows_of_two_terms_are_those_of_pcgrad(rng):
    rows = rng.normal(size=(2, 3)).astype(np.float32)
    rows[1] -= rows[0]
    weighting = upgrad(rows=True)
    found, state = jax.jit(weighting.update)(rows @ rows.T, weighting.init(2))
    # Each gives up its part along the other.
    along, lengths = rows[0] @ rows[1], np.sum(rows * rows, axis=1)
    expected = [[1, -along / lengths[1]], [-along / lengths[0], 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(state.conflicts) == 1.0


def test_conflicts_are_counted_among_present_terms(x64):
    rows = np.array([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.2], [0.5, 0.5]])
    present, start = np.array([True, True, True, False]), upgrad().init(4)
    _, compiled = _steps.update_of("upgrad", 4)  # of test_absent.py
    update = functools.partial(compiled, losses=None)
    _, state = update(rows @ rows.T, start, present=present)
    assert round(float(state.conflicts), 6) == round(2 / 3, 6)
    _, state = update(rows @ rows.T, start, present=~present)
    assert float(state.conflicts) == 0.0


def test_bad_rows(own_errors):
    with pytest.raises(ValueError, match="rows") as error:
        upgrad(rows=3)
    assert_message(error, "upgrad", "rows", "False, True", "3")


@each_method
def test_gradients_that_agree_pass_as_they_are(name):
    rows = np.abs(np.random.default_rng(0).normal(size=(3, 7))).astype(np.float32)
    weights, _ = weights_of(name, rows)
    np.testing.assert_allclose(weights, np.full(3, 1 / 3), rtol=1e-5)


@each_method
@pytest.mark.parametrize("apart", [1e3, 1e6])
def test_terms_of_different_size_do_not_conflict(name, apart):
    """A short gradient is respected as well as a long one: by angle, not by product."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = rng.normal(size=(3, 8))
        rows *= np.array([1.0, apart, 1 / apart])[:, None]
        rows = rows.astype(np.float32)
        weights, _ = weights_of(name, rows)
        found = _properties.direction(weights, rows)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        cosines = rows.astype(np.float64) @ found / lengths / np.linalg.norm(found)
        assert cosines.min() > -1e-5


@each_method
def test_opposed_gradients_give_nothing(name):
    rows = np.array([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]], np.float32)
    weights, state = weights_of(name, rows)
    assert state.converged
    np.testing.assert_allclose(weights @ rows, 0, atol=1e-6)


@each_method
def test_a_zero_gradient_leaves_the_others(name):
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-2.0, 1.0]], np.float32)
    weights, _ = weights_of(name, rows)
    # Each of three counts one third. UPGrad takes off each gradient its part along the
    # other, as PCGrad does, and DualProj off their sum its part along the first.
    expected = {
        "upgrad": (rows[0] + 2 / 5 * rows[2]) + (rows[2] + 2 * rows[0]),
        "dual_proj": rows[0] + rows[2] + rows[0],
    }
    np.testing.assert_allclose(3 * weights @ rows, expected[name], rtol=1e-5)


@each_method
def test_bad_preference(own_errors, name):
    with pytest.raises(ValueError, match="preference") as error:
        FACTORIES[name](np.array([1.0, -1.0]))
    assert_message(error, name, "preference", "-1")
    tx = reweight(FACTORIES[name](np.ones(3)), num_terms=2)
    with pytest.raises(ValueError, match="preference") as error:
        tx.init(np.zeros(2))
    assert_message(error, name, "preference", "(2,)", "(3,)")
