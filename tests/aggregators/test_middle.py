"""The trimmed mean and the median, element by element, and against outliers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from multiterm_optax import median_terms, sum_terms, trimmed_mean
from multiterm_optax.aggregators import _middle
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_zero,
)
from tests._runs import first_step
from tests.references import robust

# One and the same for equal arguments, so that tests share what it is compiled to.
trimmed, MEDIAN = functools.cache(trimmed_mean), median_terms()


def update(tx, grads, **extra):
    return first_step(tx, grads, **extra)[0]


@pytest.mark.parametrize(("terms", "trim"), [(3, 1), (5, 0), (5, 2), (10, 3)])
def test_trimmed_mean_is_definition_2(x64, record_deviation, rng, terms, trim):
    grads = {"w": rng.normal(size=(terms, 3, 4)), "b": rng.normal(size=terms)}
    found = update(trimmed(trim), grads)
    expected = {name: robust.trimmed_mean(g, trim) for name, g in grads.items()}
    gap = max(np.max(np.abs(found[name] - expected[name])) for name in grads)
    record_deviation("trimmed_mean", gap)
    assert_close(found, expected, rtol=1e-14)


@pytest.mark.parametrize("terms", [1, 2, 3, 10, 65])
def test_median_is_that_of_numpy(x64, record_deviation, rng, terms):
    grads = rng.normal(size=(terms, 50))
    found = update(MEDIAN, grads)
    record_deviation("median_terms", np.max(np.abs(found - np.median(grads, axis=0))))
    assert_close(found, np.median(grads, axis=0), rtol=1e-14)
    # What is left where more would be trimmed than there is.
    assert_identical(update(trimmed(40), grads), found)


@pytest.mark.parametrize("terms", [1, 2, 5, 16])
def test_nothing_trimmed_is_the_mean(rng, terms):
    grads = rng.normal(size=(terms, 20)).astype(np.float32)
    found = update(trimmed(0), grads)
    assert_close(found, update(sum_terms(), grads) / terms, rtol=1e-6)


@pytest.mark.parametrize("number", range(1, 12))
def test_every_sequence_of_zeros_and_ones_is_sorted(number):
    """And so every sequence: Knuth, 5.3.4, Theorem Z."""
    rows = np.array(list(itertools.product([0, 1], repeat=number)), bool).T
    for low, high in _middle._comparators(number):
        assert 0 <= low < high < number
        rows[[low, high]] = rows[low] & rows[high], rows[low] | rows[high]
    assert np.all(rows[:-1] <= rows[1:])


def test_many_terms_are_sorted(rng):
    for number in (33, 64):
        rows = rng.permuted(np.tile(np.arange(number), (50, 1)), axis=1).T
        for low, high in _middle._comparators(number):
            pair = rows[[low, high]]
            rows[low], rows[high] = pair.min(axis=0), pair.max(axis=0)
        assert np.all(rows == np.arange(number)[:, None])


@pytest.mark.parametrize("wrong", [1e30, -1e30, np.inf, -np.inf, np.nan])
def test_outliers_have_no_say(rng, wrong):
    grads = (1 + 0.1 * rng.normal(size=(9, 200))).astype(np.float32)
    grads[[0, 4]] = wrong
    grads[7] = -1e20
    for tx in (trimmed(3), MEDIAN):
        found = np.asarray(update(tx, grads))
        assert np.max(np.abs(found - 1)) < 0.3
    assert not np.all(np.abs(np.asarray(update(sum_terms(), grads))) < 1e3)


def test_too_many_that_are_not_finite_are_seen():
    grads = np.float32([[np.nan, 1], [np.nan, 2], [0, 3]])
    found = update(MEDIAN, grads)
    assert not np.isfinite(found[0])
    assert float(found[1]) == 2


@pytest.mark.parametrize("absent", [[], [0], [1, 3], [0, 2, 4], [0, 1, 2, 3]])
def test_absent_terms_are_no_terms(x64, rng, absent):
    grads, mask = rng.normal(size=(5, 30)), ~np.isin(np.arange(5), absent)
    spoilt = np.where(mask[:, None], grads, np.nan)
    for tx in (trimmed(1), MEDIAN):
        found = update(tx, spoilt, present=mask)
        assert_close(found, update(tx, grads[mask]), rtol=1e-14)


def test_no_term_at_all_is_no_step(rng):
    grads = rng.normal(size=(3, 4)).astype(np.float32)
    for tx in (trimmed(1), MEDIAN):
        assert_zero(update(tx, grads, present=np.zeros(3, bool)))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_any_scale(rng, scale):
    grads = rng.normal(size=(6, 20)).astype(np.float32)
    power = np.float32(2.0 ** np.round(np.log2(scale)))
    for tx in (trimmed(2), MEDIAN):
        assert_identical(update(tx, power * grads), power * update(tx, grads))


def test_zero_equal_and_opposed_terms():
    grads = np.float32([[0, 1, 1, -2], [0, 1, -1, 2], [0, 1, 0, 0]])
    for tx in (trimmed(1), MEDIAN):
        assert_identical(update(tx, grads), np.float32([0, 1, 0, 0]))


def test_many_terms_in_low_precision():
    found = update(trimmed(2), np.full((64, 3), 257.0, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert_identical(found, np.full(3, 257.0, jnp.bfloat16))
    assert_finite(update(MEDIAN, np.full((2, 3), 60000.0, np.float16)))


@pytest.mark.parametrize(
    ("trim", "error", "words"),
    [
        (-1, ValueError, ["at least 0", "found -1"]),
        (0.1, TypeError, ["static Python int", "0.1"]),
        (True, TypeError, ["static Python int", "True"]),
    ],
)
def test_bad_trim_is_named(own_errors, trim, error, words):
    with pytest.raises(error, match="trim must be") as caught:
        trimmed_mean(trim)
    assert_message(caught.value, "trimmed_mean", *words)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a"), P(None, "a"), P("b", "a")])
def test_terms_and_parameters_over_devices(rng, kind, spec):
    grads = rng.normal(size=(4, 8, 3)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    expected = np.median(grads, axis=0)
    with jax.set_mesh(mesh):
        laid = jax.device_put(grads, NamedSharding(mesh, spec))
        found, _ = jax.jit(MEDIAN.update)(laid, MEDIAN.init(None))
        rest = NamedSharding(mesh, P(*spec[1:]))
        assert found.sharding.is_equivalent_to(rest, found.ndim)
    assert_close(found, expected, rtol=1e-6)
