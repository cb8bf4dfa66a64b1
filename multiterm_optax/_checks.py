"""Bad input is refused at trace time, in words that name the argument.

Each check says what was expected and what was found. Values that are traced
(schedules, ``optax.inject_hyperparams``) cannot be judged and pass.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr


def num_terms(value: Any, name: str) -> int:
    """Returns ``value`` as a static int of at least 1."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name}: num_terms must be a static Python int, found a traced value; "
            "under optax.inject_hyperparams pass static_args=('num_terms',)."
        )
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: num_terms must be a static Python int, found {value!r}."
        ) from None
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name}: num_terms must be at least 1, found {value!r}.")
    return count


def in_range(
    value: Any,
    argument: str,
    name: str,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuses a concrete hyperparameter outside an interval; tracers pass."""
    if isinstance(value, Tracer):
        return
    array = _numbers(value, argument, name).astype(np.float64)
    above = array > low if open_low else array >= low
    below = array < high if open_high else array <= high
    if not np.all(above & below):
        interval = (
            f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        )
        raise ValueError(f"{name}: {argument} must be in {interval}, found {value!r}.")


def _numbers(value: Any, argument: str, name: str) -> np.ndarray:
    # NumPy would read None as NaN, and a string of digits as a number.
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    real = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in real):
        raise TypeError(f"{name}: {argument} must be a number, found {value!r}.")
    return array


def decay(value: Any, argument: str, name: str) -> None:
    """Refuses a decay rate outside [0, 1)."""
    in_range(value, argument, name, low=0.0, high=1.0, open_high=True)


def non_negative(value: Any, argument: str, name: str) -> None:
    """Refuses a negative or infinite value."""
    in_range(value, argument, name, low=0.0, open_high=True)


def one_of(value: Any, argument: str, name: str, choices: tuple[Any, ...]) -> None:
    """Refuses a value that is none of the documented choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"{name}: {argument} must be one of {listed}, found {value!r}."
        )


def vector(value: Any, argument: str, name: str, count: int) -> jax.Array:
    """Returns ``value`` as an array [K] of non-negative numbers."""
    try:
        array = jnp.asarray(value, dtype=jnp.result_type(float))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: {argument} must be {count} numbers, found {value!r}."
        ) from None
    if array.shape != (count,):
        raise ValueError(
            f"{name}: {argument} must have shape ({count},), one value for each of "
            f"num_terms={count} terms, found shape {array.shape}."
        )
    if not isinstance(array, Tracer):
        non_negative(value, argument, name)
    return array


def term_index(value: Any, argument: str, name: str, count: int) -> int:
    """Returns ``value`` as the static index of a term."""
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: {argument} must be None or the index of a term, found {value!r}."
        ) from None
    if not 0 <= index < count:
        raise ValueError(
            f"{name}: {argument} must be in [0, {count - 1}] for num_terms={count}, "
            f"found {index}."
        )
    return index


def transformation(value: Any, argument: str, name: str) -> None:
    """Refuses what is not an Optax transformation."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"{name}: {argument} must be an optax.GradientTransformation, found "
            f"{value!r}."
        )


def prng_key(value: Any, argument: str, name: str) -> tuple[jax.Array, Any]:
    """Returns a key's uint32 data, which a state can hold, and its implementation."""
    dtype, shape = getattr(value, "dtype", None), np.shape(value)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and not shape:
        return jax.random.key_data(value), jax.random.key_impl(value)
    raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if dtype != raw.dtype or shape != raw.shape:
        found = repr(value) if dtype is None else f"dtype {dtype} and shape {shape}"
        raise TypeError(
            f"{name}: {argument} must be one key, as jax.random.key(0) or "
            f"jax.random.PRNGKey(0) make it, found {found}."
        )
    return jnp.asarray(value), None


def present(value: Any, name: str, count: int) -> jax.Array | None:
    """Returns the mask of the terms that are there in this step, or None for all."""
    if value is None:
        return None
    try:
        mask = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: present must be an array of {count} booleans, found {value!r}."
        ) from None
    if mask.dtype != jnp.bool_ or mask.shape != (count,):
        raise ValueError(
            f"{name}: present must be an array of booleans of shape ({count},), True "
            f"where a term is there, found dtype {mask.dtype} and shape {mask.shape}."
        )
    return mask


def term_axis(updates: Any, params: Any, name: str, count: int | None = None) -> None:
    """Refuses updates whose leaves are not [K, *p].

    With ``params`` at hand the whole shape is known; without, only that axis 0
    has ``count`` entries.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    shapes: list[tuple[int, ...] | None] = [None] * len(leaves)
    if params is not None:
        if jax.tree.structure(params) != structure:
            raise ValueError(
                f"{name}: updates must have the tree structure of params, "
                f"{jax.tree.structure(params)}, found {structure}."
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    for (path, leaf), shape in zip(leaves, shapes, strict=True):
        _term_axis_leaf(jnp.shape(leaf), shape, f"updates{keystr(path)}", name, count)
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{name}: updates{keystr(path)} must be floating point, found "
                f"{jnp.result_type(leaf)}."
            )


def _term_axis_leaf(
    found: tuple[int, ...],
    parameter: tuple[int, ...] | None,
    leaf: str,
    name: str,
    count: int | None,
) -> None:
    lead = "num_terms" if count is None else str(count)
    if parameter is None:
        tail, fits = "*parameter shape", len(found) >= 1
    else:
        tail = ", ".join(map(str, parameter))
        fits = len(found) == len(parameter) + 1 and found[1:] == parameter
    if fits and (count is None or found[0] == count):
        return
    expected = f"({lead}, {tail})" if tail else f"({lead},)"
    hint = "."
    if found == parameter or (parameter is None and not found):
        hint = (
            ": the term axis is missing. Per-term gradients come from "
            "multiterm_optax.value_and_term_grads, and only one aggregator "
            "(K -> 1) may stand in a chain."
        )
    elif fits:
        hint = f": num_terms={count}, but the term axis has {found[0]} entries."
    raise ValueError(
        f"{name}: {leaf} must have the term axis first, shape {expected}, found "
        f"shape {found}{hint}"
    )


def term_axis_removed(stepped: Any, updates: Any, name: str) -> None:
    """Refuses an inner transformation that does not turn [K, *p] into [*p]."""
    expected = jax.tree.structure(updates)
    if jax.tree.structure(stepped) != expected:
        raise ValueError(
            f"{name}: inner must keep the tree structure of the updates, {expected}, "
            f"found {jax.tree.structure(stepped)}."
        )
    after = jax.tree.leaves(stepped)
    for (path, leaf), new in zip(
        jax.tree_util.tree_leaves_with_path(updates), after, strict=True
    ):
        if jnp.shape(new) != jnp.shape(leaf)[1:]:
            raise ValueError(
                f"{name}: inner must remove the term axis, but updates{keystr(path)} "
                f"goes in with shape {jnp.shape(leaf)} and comes out with shape "
                f"{jnp.shape(new)}, expected {jnp.shape(leaf)[1:]}. An aggregator, "
                "sum_terms() or scale_by_max_adam(num_terms), is missing in inner."
            )


def state_keeps_shapes(old: Any, new: Any, who: str) -> None:
    """Refuses an ordinary transformation that got updates with the term axis.

    A state made for [*p] that became [K, *p] is what betrays it: elementwise
    arithmetic broadcasts without a word.
    """
    found = dict(jax.tree_util.tree_leaves_with_path(new))
    for path, leaf in jax.tree_util.tree_leaves_with_path(old):
        shape = getattr(leaf, "shape", ())
        grown = getattr(found.get(path, leaf), "shape", ())
        if grown != shape and grown[1:] == shape:
            raise ValueError(
                f"{who} was initialised for updates without the term axis, but gets "
                f"them with it: its state{keystr(path)} would change its shape from "
                f"{shape} to {grown}. An aggregator, sum_terms() or "
                "scale_by_max_adam(num_terms), belongs before it, or "
                "per_term(..., num_terms) around it."
            )
