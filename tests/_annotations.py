"""Annotations checked at every call, at a price that thousands of tests can pay.

The import hook of jaxtyping decorates functions inside functions, too, again each time
that a factory builds a transformation, and makes two functions for each of them. Here
all closures of one function share what checks their calls.
"""

import functools
import inspect
import threading

import jaxtyping

_decorate = jaxtyping.jaxtyped
_checked = {}
_called = threading.local()


def install(package):
    """Checks the annotations of all modules of the package that are imported later."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook(package, "beartype.beartype")


def jaxtyped(*, typechecker):
    """The decorator of that name, made once for all closures of one function."""
    decorate = _decorate(typechecker=typechecker)

    def decorated(function):
        if not inspect.isfunction(function):  # a class
            return decorate(function)
        # What is kept holds the code, whose id therefore stays its own.
        alike = id(function.__code__)
        if alike not in _checked:
            _checked[alike] = decorate(_forward(function))
        check_and_call = _checked[alike]

        @functools.wraps(function)
        def checked(*args, **kwargs):
            if jaxtyping.config.jaxtyping_disable:
                return function(*args, **kwargs)
            outer = getattr(_called, "function", None)
            _called.function = function
            try:
                return check_and_call(*args, **kwargs)
            finally:
                _called.function = outer

        return checked

    return decorated


def _forward(function):
    """A function with the same signature that calls the closure called last."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        return _called.function(*args, **kwargs)

    return call
