"""Weights that never change."""

import jax.numpy as jnp
import pytest

from multiterm_optax import constant, equal
from tests._arguments import ByTerm
from tests._asserts import assert_identical, assert_message
from tests._methods import Method

METHODS = {
    "equal": Method(equal, fixed=("fixed",)),
    "constant": Method(constant, {"weights": ByTerm((1.0, 2.0, 0.5, 3.0, 1.5))}),
}


def test_they_are_what_they_were_told():
    weights, state = equal().update(None, equal().init(4))
    assert_identical(weights, jnp.full(4, 0.25))
    weighting = constant([3.0, 0.0, 1.0])
    weights, state = weighting.update(None, weighting.init(3))
    assert_identical(weights, jnp.array([3.0, 0.0, 1.0]))
    assert_identical(state.fixed, weights)


@pytest.mark.usefixtures("own_errors")
def test_another_number_of_terms_is_refused():
    with pytest.raises(ValueError, match="weights must have shape") as error:
        constant([1.0, 2.0]).init(3)
    assert_message(error.value, "constant: weights", "(3,)", "found shape (2,)")
