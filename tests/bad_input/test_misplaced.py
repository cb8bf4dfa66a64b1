"""Parts of the library, or of Optax, where others belong: the error says which."""

import jax.numpy as jnp
import optax
import pytest

import multiterm_optax as mt
from tests import _methods
from tests._asserts import assert_message

pytestmark = pytest.mark.usefixtures("own_errors")
PARAMS, GRADS = {"w": jnp.ones(3)}, {"w": jnp.ones((2, 3))}


@pytest.mark.parametrize("name", _methods.factories())
def test_a_weighting_in_a_chain(name):
    tx = optax.chain(_methods.build(name, 2), optax.sgd(0.1))
    with pytest.raises(TypeError, match="init takes the number of terms") as error:
        tx.init(PARAMS)
    assert_message(error.value, f"{name}: init", "reweight(weighting, num_terms)")


def test_optax_s_multi_steps_around_an_optimizer_for_terms():
    tx = optax.MultiSteps(mt.balanced(optax.sgd(0.1), 2), every_k_schedule=2)
    with pytest.raises(ValueError, match="term axis") as error:
        tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert_message(error.value, "multi_steps", "this library")
