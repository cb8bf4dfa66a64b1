"""Annotations checked at every call, at a price that thousands of tests can pay.

The import hook of jaxtyping decorates functions inside functions, too, again each time
that a factory builds a transformation, and makes two functions for each of them. Here
all closures of one function share what checks their calls.
"""

import functools
import inspect
import threading
import types

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
        # The code, kept beside it, is the only one with this id.
        _, check_and_call = _checked.get(id(function.__code__), (None, None))
        if check_and_call is None:
            check_and_call = decorate(_stand_in(function))
            _checked[id(function.__code__)] = function.__code__, check_and_call

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


def _stand_in(function):
    """Looks like the function, keeps nothing of it, calls the closure called last."""
    called = _called

    def call(*args, **kwargs):
        return called.function(*args, **kwargs)

    # In the function's own module, where the names in its hints are looked up.
    stand_in = types.FunctionType(
        call.__code__, function.__globals__, closure=call.__closure__
    )
    for name in functools.WRAPPER_ASSIGNMENTS:
        setattr(stand_in, name, getattr(function, name, None))
    stand_in.__signature__ = inspect.signature(function)
    return stand_in
