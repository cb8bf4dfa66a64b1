"""Weights that are frozen after a number of steps."""

import jax
import numpy as np
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_message
from tests._methods import Method

METHODS = {
    "frozen": Method(lambda: mt.frozen(mt.dwa(), 2)),
    "frozen, mixing": Method(
        lambda key: mt.frozen(mt.pcgrad(key), 1),
        {"key": lambda terms: jax.random.key(0)},
    ),
}


@pytest.mark.parametrize("steps", [1, 3])
def test_it_is_the_weighting_and_then_its_last_weights(steps):
    weighting = mt.dwa(0.5)
    frozen = mt.frozen(weighting, steps)
    state, held_by = weighting.init(3), frozen.init(3)
    update, own = jax.jit(frozen.update), jax.jit(weighting.update)
    rng = np.random.default_rng(0)
    for t in range(6):
        losses = np.float32(rng.uniform(1, 2, 3))
        if t < steps:
            expected, state = own(None, state, losses=losses)
        found, held_by = update(None, held_by, losses=losses)
        assert_close(found, expected, rtol=1e-6)
    assert_close(held_by.weighting, state, rtol=1e-6)


def test_an_absent_term_keeps_its_weight_of_before():
    frozen = mt.frozen(mt.constant([1.0, 2.0, 4.0]), 1)
    present = np.array([True, False, True])
    weights, state = frozen.update(None, frozen.init(3), present=present)
    assert_identical(weights, np.array([1.0, 0.0, 4.0]))
    weights, _ = frozen.update(None, state)
    assert_identical(weights, np.array([1.0, 1.0, 4.0]))  # it had none yet


@pytest.mark.usefixtures("own_errors")
def test_what_is_refused():
    with pytest.raises(ValueError, match="steps") as error:
        mt.frozen(mt.equal(), 0)
    assert_message(error.value, "frozen: steps", "at least 1", "found 0")
    with pytest.raises(ValueError, match="must take every step") as error:
        mt.frozen(mt.inexact_mgda(0.1), 5).init(2)
    assert_message(error.value, "frozen: weighting", "field ready")
