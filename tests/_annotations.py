"""Beartype for the import hook, without doing the same again for each closure.

The hook also decorates functions inside functions, again each time that a factory
builds a transformation. That is most of what the annotations cost.
"""

from beartype import beartype

_checked = {}


def checked(function):
    """``beartype(function)``, one for all functions that are alike.

    What jaxtyping has checked is a signature without a body, made for each closure.
    """
    if function.__closure__ is not None:
        return beartype(function)
    alike = (
        function.__module__,
        function.__qualname__,
        function.__code__,
        # The hints of two closures are never equal, but they read the same.
        repr(function.__annotations__),
        repr((function.__defaults__, function.__kwdefaults__)),
    )
    if alike not in _checked:
        _checked[alike] = beartype(function)
    return _checked[alike]
