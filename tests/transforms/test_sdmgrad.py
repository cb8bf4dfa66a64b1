"""SDMGrad against its algorithm, with one, two and three batches."""

import numpy as np
import pytest

from multiterm_optax import sdmgrad
from tests import _runs
from tests._asserts import assert_finite, assert_identical, assert_message
from tests.references import sdmgrad as reference
from tests.references.min_norm import min_norm_point

K, STEPS = 3, 30
# The authors' numbers, whose rounds jump, and others, which settle.
SETTINGS = {
    "authors'": {"lam": 0.3, "rate": 10.0, "momentum": 0.5},
    "settling": {"lam": 0.5, "rate": 0.2, "momentum": 0.3},
}


@pytest.mark.parametrize(
    ("setting", "number", "masked"),
    [
        pytest.param("authors'", 3, False, marks=pytest.mark.slow),
        ("authors'", 1, True),
        ("settling", 2, False),
        pytest.param("settling", 3, True, marks=pytest.mark.slow),
    ],
)
def test_agrees_with_its_algorithm(x64, record_deviation, setting, number, masked):
    given, options = _runs.batches(STEPS, K)[:number], SETTINGS[setting]
    present = _runs.masks(STEPS, K) if masked else np.ones((STEPS, K), bool)
    spoiled = np.where(present[..., None], given, np.nan)
    mask = present if masked else None
    found, _ = _runs.follow(sdmgrad(K, **options), spoiled, mask)
    three = {1: [0, 0, 0], 2: [0, 1, 0], 3: [0, 1, 2]}[number]
    expected = reference.sdmgrad(
        *(given[i] for i in three), present, rounds=20, **options
    )
    off = _runs.deviation(found, expected)
    record_deviation(f"sdmgrad, {setting}", off)
    # The authors' rounds end in a corner, where nothing is left of a rounding, but for
    # some steps that multiply it by up to ten million.
    gaps = np.max(np.abs(found - expected), axis=(1, 2))
    assert np.quantile(gaps, 0.8) < 1e-13
    assert off < (1e-12 if setting == "settling" else 1e-7)


def test_many_short_rounds_find_the_min_norm_point(x64):
    grads, _ = _runs.draw(4, K, spread=1.0)
    tx = sdmgrad(K, 0.0, rate=0.1, steps=3000)
    found, _ = _runs.follow(tx, grads[None])
    for rows, step in zip(grads, found, strict=True):
        shortest, _ = min_norm_point(rows)
        gap = np.linalg.norm(step.sum(axis=0) - shortest)
        assert gap < 1e-5 * np.linalg.norm(rows)


def test_with_a_large_lam_it_is_the_mean(x64):
    grads, _ = _runs.draw(4, K)
    found, _ = _runs.follow(sdmgrad(K, 1e12), grads[None])
    np.testing.assert_allclose(found, grads / K, rtol=1e-10)


SMALL = sdmgrad(3)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_sizes(size):
    rows = np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    grads = np.float32(size * rows)
    for second in (grads, -grads, 0 * grads):  # a diagonal with no length, too
        updates, state = _runs.first_step(SMALL, grads, grads_2=second)
        assert_finite((updates, state))
        assert np.sum(state.weights) == pytest.approx(1, rel=1e-6)


def test_one_term_is_its_third_batch():
    given = np.random.default_rng(0).normal(size=(3, 1, 4)).astype(np.float32)
    first, second, third = given
    found, _ = _runs.first_step(sdmgrad(1), first, grads_2=second, grads_3=third)
    assert_identical(found, third)


BAD = {
    "lam": (-1.0, ValueError),
    "rate": (-1.0, ValueError),
    "momentum": (1.0, ValueError),
    "steps": (0.5, TypeError),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments_are_named(own_errors, argument):
    value, error = BAD[argument]
    with pytest.raises(error, match=f"{argument} must be") as caught:
        sdmgrad(2, **{argument: value})
    assert_message(caught.value, "sdmgrad", f"found {value}")
