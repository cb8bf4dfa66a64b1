"""What error messages have in common, such as a short account of what was found."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr

MISSING = (
    "the term axis is missing. Per-term gradients come from "
    "multiterm_optax.value_and_term_grads, only one aggregator (K -> 1) may stand in a "
    "chain, and around a whole optimizer multi_steps, apply_if_finite and masked of "
    "this library take the place of Optax's."
)
MODEL = (
    "For an Equinox model, pass only the trained arrays: params, static = "
    "eqx.partition(model, eqx.is_inexact_array), and in losses_fn model = "
    "eqx.combine(params, static)."
)
COMPLEX_PARAMETERS = (
    "Only value_and_term_grads and term_grads take complex parameters; here pass their "
    "real and imaginary parts as two leaves."
)
COMPLEX_UPDATES = (
    "optax.contrib.split_real_and_imaginary around the whole optimizer splits complex "
    "gradients."
)
AGGREGATOR = "An aggregator, sum_terms() or scale_by_max_adam(num_terms),"


@contextlib.contextmanager
def speaking_as(name: str, *parts: str) -> Iterator[None]:
    """Lets errors of the ``parts`` that ``name`` is made of name it instead.

    Whoever called ``name`` need not know its parts.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error.args[0]) if error.args else ""
        part, colon, rest = message.partition(": ")
        if colon and part in parts:
            error.args = (f"{name}: {rest}", *error.args[1:])
        raise


def describe(value: Any) -> str:
    """A short description of a value, whose repr may run over pages."""
    if hasattr(value, "reads_gramian"):
        return "a Weighting"
    if hasattr(value, "init") and hasattr(value, "update"):
        return "an optax.GradientTransformation"
    if isinstance(value, Tracer | jax.Array | np.ndarray) and value.ndim:
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if not inspect.isfunction(value):
        text = repr(value)
        return text if len(text) <= 100 else f"{text[:100]}..."
    found = f"the function {value.__qualname__}"
    if "<" in value.__qualname__:
        return found
    # Most likely a factory that was not called.
    parameters = inspect.signature(value).parameters.values()
    required = any(one.default is one.empty for one in parameters)
    return f"{found} (did you mean {value.__name__}({'...' if required else ''})?)"


def difference(found: Any, expected: Any) -> str:
    """Where two trees differ; their full structures may run over pages."""
    one, other = (
        {keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (found, expected)
    )
    extra, missing = sorted(one - other), sorted(other - one)
    parts = []
    for which, paths in (("without", missing), ("with", extra)):
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            parts.append(f"{which} {paths[0] or 'a bare leaf'}{more}")
    if parts:
        return f"found a tree {', '.join(parts)}"
    return f"{jax.tree.structure(expected)}, found {jax.tree.structure(found)}"
