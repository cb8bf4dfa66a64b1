"""Krum against the paper's scores, and against outliers."""

import functools

import jax
import numpy as np
import pytest

from multiterm_optax import krum
from tests._asserts import assert_close, assert_identical, assert_message, assert_zero
from tests._methods import Method
from tests.references import robust
from tests.weightings._runs import filled

# Of equal scores the first counts as the lower one: K = 3 has two of them always.
METHODS = {"krum": Method(krum, {"num_byzantine": 0}, simplex=True, permutes=False)}


@functools.cache
def _compiled(num_byzantine, num_selected, x64):
    del x64
    weighting = krum(num_byzantine, num_selected)

    def one(gramian, present):
        state = weighting.init(len(gramian))
        return weighting.update(gramian, state, present=present)[0]

    return jax.jit(jax.vmap(one))


def weights_of(batch, num_byzantine, num_selected=1, present=None):
    """Of Jacobians [N, K, P], the gramians in the dtype of the batch."""
    exact = np.asarray(batch, np.float64)
    gramians = (exact @ np.swapaxes(exact, 1, 2)).astype(np.asarray(batch).dtype)
    mask = np.broadcast_to(True if present is None else present, exact.shape[:2])
    find = _compiled(num_byzantine, num_selected, bool(jax.config.jax_enable_x64))
    return np.asarray(find(filled(gramians), filled(mask)))[: len(exact)]


@pytest.mark.parametrize(
    ("terms", "f", "m"),
    [(3, 0, 1), (5, 1, 3), (12, 4, 2)]
    + [
        pytest.param(*case, marks=pytest.mark.slow) for case in [(5, 1, 1), (12, 0, 12)]
    ],
)
def test_agrees_with_section_4(x64, record_deviation, terms, f, m):
    rng = np.random.default_rng(terms)
    batch = rng.normal(size=(40, terms, 9)) + rng.normal(size=(40, 1, 9))
    batch *= np.exp(rng.normal(size=(40, terms, 1)))
    found = weights_of(batch, f, m)
    expected = np.stack([robust.krum(J, f, m) for J in batch])
    record_deviation("krum", np.max(np.abs(found - expected)))
    assert_close(found, expected, rtol=1e-15)


def test_outliers_have_no_say():
    rng = np.random.default_rng(0)
    right = 1 + 0.1 * rng.normal(size=(50, 7, 6))
    wrong = 1e3 * rng.normal(size=(50, 3, 6))
    wrong[:25] = -1.0  # all together at one place
    batch = np.concatenate([wrong, right], axis=1).astype(np.float32)
    for m in (1, 4):
        found = weights_of(batch, 3, m)
        assert_zero(found[:, :3])
        direction = np.einsum("nk,nkp->np", found, batch)
        assert np.max(np.abs(direction - 1)) < 0.5
    # The mean is far off.
    assert np.max(np.abs(batch[25:].mean(axis=1) - 1)) > 100


@pytest.mark.parametrize("power", [-50, -33, 17, 33, 50, 60])  # 1e-15 to 1e18
def test_scale_changes_nothing(power):
    rows = np.random.default_rng(0).normal(size=(1, 10, 5)).astype(np.float32)
    scaled = weights_of(np.float32(2.0**power) * rows, 3, 4)
    assert_identical(scaled, weights_of(rows, 3, 4))


def test_the_first_of_equal_scores_is_taken():
    batch = np.float32([[[9, 9], [0, 0], [0, 1]], [[1, 2]] * 3, np.zeros((3, 2))])
    expected = [[0, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert_identical(weights_of(batch, 0), np.float32(expected))
    opposed = np.float32([[[1, 2], [-1, -2]]])
    assert_identical(weights_of(opposed, 0), np.float32([[1, 0]]))


def test_absent_terms_are_neither_neighbours_nor_selected(x64):
    rng = np.random.default_rng(2)
    batch = rng.normal(size=(20, 7, 4))
    batch[:, 1] = batch[:, 4] + 1e-3  # the nearest of all
    mask = np.arange(7) != 1
    found = weights_of(batch, 2, 2, mask)
    assert_zero(found[:, 1])
    assert_identical(found[:, mask], weights_of(batch[:, mask], 2, 2))


def test_few_present_terms_are_still_selected():
    rows = np.random.default_rng(0).normal(size=(3, 10, 4)).astype(np.float32)
    mask = np.stack([np.isin(np.arange(10), at) for at in ([2], [1, 3], [])])
    found = weights_of(rows, 3, 1, mask)
    assert_identical(found, np.float32(mask & (np.cumsum(mask, axis=1) == 1)))
    assert_identical(weights_of(rows, 3, 4, mask)[1], np.float32(mask[1]) / 2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_byzantine": -1}, ValueError, ["num_byzantine", "at least 0", "-1"]),
        ({"num_byzantine": 1.5}, TypeError, ["num_byzantine", "int", "1.5"]),
        ({"num_byzantine": 3}, ValueError, ["num_byzantine", "K - 3", "here 2"]),
        (
            {"num_byzantine": 0, "num_selected": 0},
            ValueError,
            ["num_selected", "at least 1", "found 0"],
        ),
        (
            {"num_byzantine": 0, "num_selected": 6},
            ValueError,
            ["num_selected", "num_terms=5", "found 6"],
        ),
    ],
)
def test_bad_arguments_are_named(own_errors, options, error, words):
    with pytest.raises(error, match="must be") as caught:
        krum(**options).init(5)
    assert_message(caught.value, "krum", *words)
