"""ConFIG against the pseudo-inverse of the unit gradients, and what it promises."""

import functools

import jax
import numpy as np
import pytest

from multiterm_optax import config
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_zero,
)
from tests._methods import Method
from tests._problems import sizes
from tests.references import config as reference
from tests.weightings import _jacobians
from tests.weightings._runs import filled

METHODS = {"config": Method(config)}

KINDS = _jacobians.WELL_POSED + _jacobians.DEGENERATE


@functools.cache
def _compiled(x64):
    """Weights of a batch of gramians, each with a preference and a mask."""
    del x64

    def one(gramian, preference, present):
        weighting = config(preference)
        state = weighting.init(len(gramian))
        return weighting.update(gramian, state, present=present)[0]

    return jax.jit(jax.vmap(one))


def directions(batch, preference=None, present=None):
    """Directions of Jacobians [N, K, P], the gramians in the dtype of the batch."""
    batch = np.asarray(batch)
    exact = batch.astype(np.float64)
    gramians = (exact @ np.swapaxes(exact, 1, 2)).astype(batch.dtype)
    shape = batch.shape[:2]
    given = [
        np.broadcast_to(1.0 if preference is None else preference, shape),
        np.broadcast_to(True if present is None else present, shape),
    ]
    find = _compiled(bool(jax.config.jax_enable_x64))
    given = gramians, given[0].astype(batch.dtype), given[1]
    weights = np.asarray(find(*map(filled, given)))[: len(batch)]
    return np.einsum("nk,nkp->np", weights.astype(np.float64), exact)


def largest_gap(found, expected, batch):
    """Relative to the longest gradient of each Jacobian."""
    gaps = np.linalg.norm(found - expected, axis=1)
    return np.max(gaps / np.linalg.norm(batch, axis=2).max(axis=1))


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_agrees_with_equations_2_and_3(x64, record_deviation, terms):
    rng = np.random.default_rng(terms)
    batch = np.stack([kind(rng, terms, 2 * terms) for kind in 3 * KINDS[:-1]])
    expected = np.stack([reference.direction(J) for J in batch])
    gap = largest_gap(directions(batch), expected, batch)
    record_deviation("config", gap)
    assert gap < 1e-11


@pytest.mark.parametrize("terms", sizes(3, slow=(10,)))
def test_a_preference_sets_the_cosines(x64, record_deviation, terms):
    rng = np.random.default_rng(terms)
    batch = np.stack([_jacobians.agreeing(rng, terms, 30) for _ in range(20)])
    preference = rng.uniform(0, 2, size=(20, terms))
    preference[0, 0] = 0.0
    found = directions(batch, preference)
    expected = np.stack(
        [reference.direction(J, p) for J, p in zip(batch, preference, strict=True)]
    )
    gap = largest_gap(found, expected, batch)
    record_deviation("config, preference", gap)
    assert gap < 1e-11
    units = batch / np.linalg.norm(batch, axis=2, keepdims=True)
    cosines = np.einsum("nkp,np->nk", units, found)
    ratio = cosines / np.linalg.norm(cosines, axis=1, keepdims=True)
    wanted = preference / np.linalg.norm(preference, axis=1, keepdims=True)
    np.testing.assert_allclose(ratio, wanted, atol=1e-11)
    # Only the ratios count.
    assert_close(directions(batch, 1e6 * preference), found, rtol=1e-11)


def test_two_terms_meet_in_the_centre_of_the_dual_cone(x64):
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(50, 2, 3)) * np.exp(rng.normal(size=(50, 2, 1)))
    # The cone's edges are what is left of each gradient without the other.
    lengths = np.sum(batch * batch, axis=2, keepdims=True)
    dots = np.sum(batch[:, 0] * batch[:, 1], axis=1)[:, None, None]
    edges = batch - dots / lengths[:, ::-1] * batch[:, ::-1]
    edges /= np.linalg.norm(edges, axis=2, keepdims=True)
    centre = edges.sum(axis=1)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    size = np.sum(batch.sum(axis=1) * centre, axis=1, keepdims=True)
    three = np.concatenate([batch, np.zeros((50, 1, 3))], axis=1)  # one has no say
    np.testing.assert_allclose(directions(three), size * centre, rtol=1e-9, atol=1e-12)


def test_the_example_of_other_libraries():
    # A gradient of zero has no say.
    found = directions(np.array([[[-4.0, 1, 1], [6, 1, 1], [0, 0, 0]]], np.float32))
    np.testing.assert_allclose(found[0], [0.1588, 2.0706, 2.0706], atol=5e-5)


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_float32(record_deviation, terms):
    rng = np.random.default_rng(terms)
    kinds = [k for k in _jacobians.WELL_POSED if k is not _jacobians.aligned]
    batch = np.stack([kind(rng, terms, 2 * terms) for kind in 5 * kinds])
    batch = batch.astype(np.float32)
    expected = np.stack([reference.direction(J) for J in batch])
    gap = largest_gap(directions(batch), expected, batch)
    record_deviation("config, float32", gap)
    assert gap < 1e-5


def test_scale_changes_nothing():
    rows = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    powers = 2.0 ** np.round(np.log2([1e-15, 1e-10, 1, 1e5, 1e10, 1e15]))
    batch = powers[:, None, None].astype(np.float32) * rows
    found = directions(batch) / powers[:, None]
    assert_close(found, np.broadcast_to(found[2], found.shape), rtol=1e-7)


def test_terms_of_any_size_have_equal_cosines():
    rng = np.random.default_rng(0)
    units = rng.normal(size=(20, 3, 8))
    batch = units * np.array([1.0, 1e15, 1e-15])[:, None]
    found = directions(batch.astype(np.float32))
    norms = np.linalg.norm(batch, axis=2) * np.linalg.norm(found, axis=1)[:, None]
    cosines = np.einsum("nkp,np->nk", batch, found) / norms
    assert cosines.min() > 0
    assert_close(cosines, np.broadcast_to(cosines[:, :1], cosines.shape), rtol=1e-5)


def test_degenerate_gradients(x64):
    batch = np.array(
        [
            np.zeros((3, 2)),
            [[1.0, 2], [0, 0], [0, 0]],
            [[1.0, 2], [1, 2], [1, 2]],
            [[1.0, 2], [-1, -2], [0, 0]],
            [[1.0, 0], [-3, 0], [0, 2]],
        ]
    )
    found = directions(batch)
    assert_zero(found[0])
    assert_close(found[1], batch[1, 0], rtol=1e-12)  # the others have no say
    assert_close(found[2], 3 * batch[2, 0], rtol=1e-12)
    assert_zero(found[3])
    assert_close(found[4], batch[4, 2], rtol=1e-12)


def test_absent_terms_are_no_terms(x64):
    rng = np.random.default_rng(1)
    batch, preference = rng.normal(size=(10, 3, 6)), np.array([1.0, 2.0, 3.0])
    mask = np.array([True, False, True])
    found = directions(batch, preference, mask)
    two = [reference.direction(J, preference[mask]) for J in batch[:, mask]]
    assert_close(found, np.stack(two), rtol=1e-12)
    assert_zero(directions(batch, preference, np.zeros(3, bool)))


def test_one_term_is_as_it_is():
    batch = np.float32([[[1e-15]], [[0.3]], [[1e15]]])
    assert_identical(directions(batch), batch[:, 0].astype(np.float64))


@pytest.mark.slow
@pytest.mark.parametrize("terms", [2, 3, 5, 10, 24])
def test_thousands_of_ill_conditioned_problems(x64, record_deviation, terms):
    rng = np.random.default_rng(terms)
    batch = np.stack([kind(rng, terms, 2 * terms) for kind in 200 * KINDS[:-1]])
    batch *= 10.0 ** rng.uniform(-6, 6, size=(len(batch), terms, 1))
    found = directions(batch)
    assert_finite(found)
    expected = np.stack([reference.direction(J) for J in batch])
    gap = largest_gap(found, expected, batch)
    record_deviation("config, ill-conditioned", gap)
    assert gap < 1e-9


@pytest.mark.parametrize(
    ("preference", "error", "words"),
    [
        ([1.0, -1.0], ValueError, ["preference", "-1"]),
        ([1.0, 2.0, 3.0], ValueError, ["preference", "(2,)", "(3,)"]),
        ("first", TypeError, ["preference", "number", "'first'"]),
    ],
)
def test_bad_preference(own_errors, preference, error, words):
    with pytest.raises(error, match="preference must") as caught:
        config(preference).init(2)
    assert_message(caught.value, "config", *words)
