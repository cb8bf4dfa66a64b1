"""A hyperparameter that is not a number is refused by name, in every factory."""

import inspect

import pytest

from tests import _factories


def numbers():
    """Factories with the names of their arguments that take a number."""
    for factory in _factories.factories():
        for name, parameter in inspect.signature(factory.function).parameters.items():
            optional = name in ("weight_decay", "norm_init")
            if isinstance(parameter.default, float) or name == "learning_rate":
                yield factory, name, None if not optional else "x"
                yield factory, name, "0.9"  # NumPy would read it
            elif optional:
                yield factory, name, "0.9"


@pytest.mark.parametrize(
    ("factory", "argument", "value"),
    [
        pytest.param(*case, id=f"{case[0].name}-{case[1]}-{case[2]}")
        for case in numbers()
    ],
)
def test_what_is_no_number_is_named(own_errors, factory, argument, value):
    with pytest.raises(TypeError, match=f"{argument} must be a number, found") as error:
        factory.build(**{argument: value})
    assert repr(value) in str(error.value)


def test_there_is_something_to_try():
    tried = {(factory.name, argument) for factory, argument, _ in numbers()}
    assert ("balance_by_norm", "decay") in tried
    assert ("mtadam", "learning_rate") in tried
    assert ("adatask_adam", "weight_decay") in tried
