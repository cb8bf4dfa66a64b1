"""Arguments for optimizers that ask for the value of the loss or search along it.

These are Polyak's step (``value``), line searches and L-BFGS (``value``, ``grad`` and
``value_fn``). The loss is the one whose gradient they get.
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

Combine = Callable[[Any], jax.Array]

_WAY_ROUND = (
    "value and grad are made from losses=, inside weighted(weighting, inner, "
    "num_terms) and after sum_terms() as the first stage of multiterm_optax.chain; "
    "pass value_fn= yourself, and it may return the losses. Elsewhere find the weights "
    "first, with value_and_weighted_grad, and let the optimizer work on "
    "weights @ losses."
)


def arguments(
    given: dict[str, Any], total: Any, losses: Any, combine: Combine
) -> dict[str, Any]:
    """``value`` and ``grad`` of the combined loss, unless the user gave their own.

    ``combine`` turns K losses into one number, and also those that ``value_fn``
    returns.
    """
    found = {"grad": total}
    if losses is not None:
        found["value"] = combine(losses)
    found |= given
    return with_value_fn(found, combine)


def accepted(
    update: Callable[..., Any], found: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """``found``, less what ``update`` cannot take, unless the user gave it."""
    parameters = inspect.signature(update).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return found
    wanted = parameters.keys() | given.keys()
    return {key: value for key, value in found.items() if key in wanted}


def with_value_fn(given: dict[str, Any], combine: Combine | None) -> dict[str, Any]:
    """A ``value_fn`` that accepts the ``losses`` and ``present`` that Optax passes."""
    value_fn = given.get("value_fn")
    if not callable(value_fn):
        return given

    @functools.wraps(value_fn)
    def fn(*args: Any, **kwargs: Any) -> Any:
        wanted = {key: value for key, value in kwargs.items() if key not in ignored}
        found: Any = value_fn(*args, **wanted)
        is_number = jax.tree_util.all_leaves([found]) and not jnp.ndim(found)
        return found if combine is None or is_number else combine(found)

    parameters = list(inspect.signature(value_fn).parameters.values())
    names = {parameter.name for parameter in parameters}
    ignored = {"losses", "present"} - names
    # Optax refuses arguments that the signature does not name.
    more = [inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY) for one in ignored]
    rest = [one for one in parameters if one.kind == one.VAR_KEYWORD]
    others = [one for one in parameters if one.kind != one.VAR_KEYWORD]
    signature = inspect.Signature([*others, *more, *rest])
    setattr(fn, "__signature__", signature)  # noqa: B010, no field of a function
    return given | {"value_fn": fn}


@contextlib.contextmanager
def saying_the_way_round(who: str) -> Iterator[None]:
    """Adds a hint to Optax's error of a missing ``value``, ``grad`` or ``value_fn``."""
    try:
        yield
    except TypeError as error:
        missing = r"required keyword-only argument.*'(value|grad|value_fn)'"
        if re.search(missing, str(error)):
            error.add_note(f"{who}: {_WAY_ROUND}")
        raise
