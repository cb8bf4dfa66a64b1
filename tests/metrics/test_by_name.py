"""Metrics that say which term is which, and which is out of proportion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import metrics
from tests._asserts import assert_identical, assert_message

LOSSES = {"pde": {"res": 1e-6, "ics": 0.5}, "data": 0.2}
NAMES = ["data", "pde/ics", "pde/res"]


def test_names_stand_in_the_order_of_the_terms():
    found = jax.jit(metrics.named)(np.arange(3.0), LOSSES)
    assert {name: float(found[name]) for name in NAMES} == dict(
        zip(NAMES, range(3), strict=True)
    )
    history = np.arange(12.0).reshape(4, 3)
    found = metrics.named(history, LOSSES)
    assert list(found) == NAMES
    for i, name in enumerate(NAMES):
        assert_identical(found[name], history[:, i])


def test_terms_without_names_are_numbered():
    for losses in (np.ones(3), [1.0, 2.0, 3.0]):
        assert list(metrics.named(np.ones(3), losses)) == ["0", "1", "2"]
    assert list(metrics.named(np.ones(1), np.ones(()))) == ["0"]


def test_names_may_be_given():
    for names in (["res", "bcs"], ("res", "bcs")):
        found = metrics.named(np.arange(2.0), names)
        assert {name: float(value) for name, value in found.items()} == {
            "res": 0.0,
            "bcs": 1.0,
        }
    with pytest.raises(ValueError, match=r"metrics\.named: values must have shape"):
        metrics.named(np.ones(3), ["res", "bcs"])


def test_names_that_join_to_the_same_stay_apart():
    losses = {"a": {"b": 1.0}, "a/b": 2.0}
    assert len(metrics.named(np.ones(2), losses)) == 2


@pytest.mark.parametrize("values", [np.ones(2), np.ones(()), np.ones((3, 2))])
def test_values_of_other_terms_are_refused(own_errors, values):
    with pytest.raises(ValueError, match=r"metrics\.named") as error:
        metrics.named(values, LOSSES)
    assert_message(error.value, "[..., 3]", "data, pde/ics, pde/res", "found")


def slow(weights, losses, ratio):
    """The same, term by term, in Python."""

    def median(values, i):
        others = [abs(v) for j, v in enumerate(values) if j != i]
        others = [v for v in others if np.isfinite(v) and v > 0]
        return np.median(others) if others else None

    large, small = [], []
    for i, (weight, loss) in enumerate(zip(weights, losses, strict=True)):
        middle = median(weights, i)
        above = middle is not None and abs(weight) > ratio * middle
        large.append(above or not np.isfinite(weight))
        middle = median(losses, i)
        small.append(middle is not None and ratio * abs(loss) < middle)
    return large, small


@pytest.mark.parametrize("terms", [1, 2, 3, 6, 7])
def test_signs_against_a_loop(terms):
    rng = np.random.default_rng(terms)
    drawn = np.exp(rng.normal(scale=4.0, size=(2, 300, terms)))
    drawn[rng.random(drawn.shape) < 0.1] = 0.0
    drawn[rng.random(drawn.shape) < 0.05] = np.nan
    drawn = np.float32(drawn * rng.choice([-1, 1], size=drawn.shape))
    found = jax.jit(jax.vmap(metrics.warnings))(*drawn)
    wide = np.float64(drawn)
    expected = [slow(*rows, 100.0) for rows in zip(*wide, strict=True)]
    large, small = map(np.array, zip(*expected, strict=True))
    np.testing.assert_array_equal(found.large_weight, large)
    np.testing.assert_array_equal(found.small_loss, small)
    assert terms == 1 or (large.any() and small.any())


def test_signs_at_all_scales():
    signs = jax.jit(metrics.warnings)
    weights, losses = np.array([500.0, 1.0, 2.0]), np.array([1e-4, 1.0, 2.0])
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        found = signs(np.float32(scale * weights), np.float32(scale * losses))
        assert found.large_weight.tolist() == [True, False, False]
        assert found.small_loss.tolist() == [True, False, False]


def test_signs_by_name():
    weights = {"pde": {"res": 900.0, "ics": 1.0}, "data": 1.5}
    found = jax.jit(metrics.warnings)(weights, LOSSES)
    for signs in jax.tree.map(np.asarray, found):
        by_name = metrics.named(signs, LOSSES)
        assert {name for name, sign in by_name.items() if sign} == {"pde/res"}
    mixing = np.float32([[1.0, 300.0], [0.0, 300.0]])
    found = jax.jit(metrics.warnings)(mixing)
    assert found.small_loss is None
    assert found.large_weight.tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.warnings(jnp.ones(3), ratio=0.5), ["ratio", "[1, inf)"]),
        (lambda: metrics.warnings(jnp.ones(())), ["weights", "[K]", "()"]),
        (lambda: metrics.warnings(jnp.ones(2), LOSSES), ["losses", "found 3", "data"]),
        (lambda: metrics.warnings({"a": 1.0}, LOSSES), ["weights", "'a'", "'data'"]),
    ],
)
def test_bad_input(own_errors, call, words):
    with pytest.raises(ValueError, match=r"metrics\.warnings") as error:
        jax.eval_shape(call)
    assert_message(error.value, *words)
