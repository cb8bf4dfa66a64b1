"""Every number that a method takes: out of range it is refused, traced it passes."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import _factories, _methods
from tests._asserts import (
    assert_message,
)
from tests.bad_input._step import (
    K,
    grads,
    step,
)

# The library's own messages, as a user without a type checker sees them.
pytestmark = pytest.mark.usefixtures("own_errors")


# May be negative, as in Optax, or where the formula gives it a sense.
ANY_SIGN = {"learning_rate", "weight_decay", "beta"}
# Numbers whose default is another thing.
NUMBERS = {"learning_rate", "weight_decay", "norm_init", "steps_per_epoch", "leak"}


def hyperparameters():
    """(name, builder, argument) of every number that a method takes."""
    for factory in _factories.factories():
        for argument in numbers_of(factory.function):
            yield factory.name, factory.build, argument
    for name, function in _factories.exported_functions("weightings").items():
        for argument in numbers_of(function):
            yield (
                name,
                partial(_methods.build, name, _factories.TERMS),
                argument,
            )


def numbers_of(function):
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, float) or name in NUMBERS
    ]


HYPERPARAMETERS = {
    f"{name}.{argument}": (name, build, argument)
    for name, build, argument in hyperparameters()
}


def test_hyperparameters_are_found():
    assert HYPERPARAMETERS.keys() >= {
        "mtadam.learning_rate",
        "mtadam.b3",
        "mtadam.weight_decay",
        "metabalance.relax",
        "adaptive_mgda.scale",
        "dwa.temperature",
        "cagrad.c",
        "grad_drop.leak",
    }


@pytest.mark.parametrize("which", HYPERPARAMETERS)
def test_hyperparameter_out_of_range_is_refused(which):
    _, build, argument = HYPERPARAMETERS[which]
    bad = [np.nan, "0.5", 1j, jnp.ones(7), True, {}]
    if argument not in ANY_SIGN:
        bad.append(-0.5)
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=f"{argument} must") as caught:
            use(build(**{argument: value}))
        assert_message(caught.value, ":", "found")


def use(made):
    """A number for each term is looked at where their number is known."""
    if hasattr(made, "reads_gramian"):
        return made.init(_factories.TERMS)
    return step(made, grads(_factories.TERMS), losses=_factories.example_losses())


@pytest.mark.parametrize("which", HYPERPARAMETERS)
def test_hyperparameter_may_be_traced(which):
    _, build, argument = HYPERPARAMETERS[which]
    if which in ("lbtw.steps_per_epoch", "dwa.steps_per_epoch"):
        return  # a static int, and named so in its error
    jax.eval_shape(lambda value: [use(build(**{argument: value})), None][1], 0.5)
    with pytest.raises(TypeError, match=f"{argument} must"):
        jax.eval_shape(lambda value: build(**{argument: value}).init(K), 0.5j)
