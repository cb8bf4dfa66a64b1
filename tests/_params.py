"""Which parameters of a test run by default."""

import pytest


def some(values, by_default, name=None):
    """The values as parameters, of which the others run with ``-m slow``.

    ``name`` finds what a value is called; None: it is its own name.
    """
    values = list(values)
    names = values if name is None else [name(value) for value in values]
    return [
        pytest.param(
            value, marks=[] if one in by_default else pytest.mark.slow, id=str(one)
        )
        for value, one in zip(values, names, strict=True)
    ]
