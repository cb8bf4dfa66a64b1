"""Bad input is refused at trace time, in words that name the argument.

Each check says what was expected and what was found. Values that are traced
(schedules, ``optax.inject_hyperparams``) cannot be judged and pass.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr


def describe(value: Any) -> str:
    """What was found, in a few words: a repr may run over pages."""
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
    # The likely slip: a factory that was not called.
    parameters = inspect.signature(value).parameters.values()
    required = any(one.default is one.empty for one in parameters)
    return f"{found} (did you mean {value.__name__}({'...' if required else ''})?)"


def static_int(value: Any) -> int | None:
    """Returns ``value`` as a Python int, or None for what is not one."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, jax.errors.JAXTypeError):
        return None


def num_terms(value: Any, name: str) -> int:
    """Returns ``value`` as a static int of at least 1."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name}: num_terms must be a static Python int, found a traced value; "
            "under optax.inject_hyperparams pass static_args=('num_terms',)."
        )
    count = static_int(value)
    if count is None:
        raise TypeError(
            f"{name}: num_terms must be a static Python int, found {describe(value)}."
        )
    if count < 1:
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
    array: bool = False,
) -> None:
    """Refuses what is no number, or concrete and outside an interval; tracers pass.

    ``array`` allows for several numbers.
    """
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    try:  # NumPy reads None as an object, and digits in quotes as text
        numbers = value if isinstance(value, Tracer) else np.asarray(value)
    except (TypeError, ValueError):
        numbers = np.asarray(None)
    real = jnp.issubdtype(numbers.dtype, jnp.floating) or jnp.issubdtype(
        numbers.dtype, jnp.integer
    )
    if not real or (numbers.ndim and not array):
        raise TypeError(
            f"{name}: {argument} must be a number, found {describe(value)}."
        )
    if isinstance(numbers, Tracer):
        return
    numbers = numbers.astype(np.float64)
    above = numbers > low if open_low else numbers >= low
    below = numbers < high if open_high else numbers <= high
    if not np.all(above & below):
        raise ValueError(f"{name}: {argument} must be in {interval}, found {value!r}.")


def decay(value: Any, argument: str, name: str) -> None:
    """Refuses a decay rate outside [0, 1)."""
    in_range(value, argument, name, low=0.0, high=1.0, open_high=True)


def non_negative(value: Any, argument: str, name: str, *, array: bool = False) -> None:
    """Refuses a negative or infinite value."""
    in_range(value, argument, name, low=0.0, open_high=True, array=array)


def one_of(value: Any, argument: str, name: str, choices: tuple[Any, ...]) -> None:
    """Refuses a value that is none of the documented choices."""
    # An array has no one answer to ``in``.
    if isinstance(value, jax.Array | np.ndarray) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"{name}: {argument} must be one of {listed}, found {describe(value)}."
        )


def vector(value: Any, argument: str, name: str, count: int) -> jax.Array:
    """Returns ``value`` as an array [K] of non-negative numbers."""
    try:
        array = jnp.asarray(value, dtype=jnp.result_type(float))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: {argument} must be {count} numbers, one for each term, found "
            f"{describe(value)}."
        ) from None
    if array.shape != (count,):
        raise ValueError(
            f"{name}: {argument} must have shape ({count},), one value for each of "
            f"num_terms={count} terms, found shape {array.shape}."
        )
    traced = any(isinstance(one, Tracer) for one in jax.tree.leaves(value))
    non_negative(array if traced else value, argument, name, array=True)
    return array


def term_index(value: Any, argument: str, name: str, count: int) -> int:
    """Returns ``value`` as the static index of a term."""
    index = static_int(value)
    if index is None:
        raise TypeError(
            f"{name}: {argument} must be None or the index of a term, found "
            f"{describe(value)}."
        )
    if not 0 <= index < count:
        raise ValueError(
            f"{name}: {argument} must be in [0, {count - 1}] for num_terms={count}, "
            f"found {index}."
        )
    return index


def floating_dtype(value: Any, argument: str, name: str) -> None:
    """Refuses what is neither None nor a floating-point dtype."""
    if value is None:
        return
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{name}: {argument} must be None or a floating-point dtype, found "
            f"{value!r}."
        )


def kind_of(value: Any) -> Any:
    """Dtype of a number or an array, None for anything else."""
    if hasattr(value, "dtype") or isinstance(value, int | float | complex):
        return jnp.result_type(value)
    return None


def real(value: Any, argument: str, name: str) -> None:
    """Refuses what is not real numbers: complex ones, booleans, text."""
    kind = kind_of(value)
    if kind is None or not (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    ):
        raise TypeError(
            f"{name}: {argument} must be real numbers, found "
            f"{describe(value) if kind is None else kind}."
        )


def floating(value: Any, argument: str, name: str, why: str = "") -> None:
    """Refuses what is not of a real floating-point dtype."""
    kind = kind_of(value)
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        raise TypeError(
            f"{name}: {argument} must be real floating point{why}, found "
            f"{describe(value) if kind is None else kind}."
        )


def function(value: Any, argument: str, name: str) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        raise TypeError(
            f"{name}: {argument} must be a function (itself, not what it returns), "
            f"found {describe(value)}."
        )


def transformation(value: Any, argument: str, name: str) -> None:
    """Refuses what is not an Optax transformation."""
    weighting = hasattr(value, "reads_gramian")  # which has init and update, too
    if weighting or not (hasattr(value, "init") and hasattr(value, "update")):
        hint = " A transformation with its weights is reweight(weighting, num_terms)."
        raise TypeError(
            f"{name}: {argument} must be an optax.GradientTransformation, found "
            f"{describe(value)}.{hint if weighting else ''}"
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
            f"{name}: present must be an array of {count} booleans, in the order of "
            f"the terms, found {describe(value)}."
        ) from None
    if mask.dtype != jnp.bool_ or mask.shape != (count,):
        raise ValueError(
            f"{name}: present must be an array of booleans of shape ({count},), True "
            f"where a term is there, found dtype {mask.dtype} and shape {mask.shape}."
        )
    return mask


_MISSING = (
    "the term axis is missing. Per-term gradients come from "
    "multiterm_optax.value_and_term_grads, and only one aggregator (K -> 1) may stand "
    "in a chain."
)


def term_axis(updates: Any, params: Any, name: str, count: int | None = None) -> None:
    """Refuses updates whose leaves are not [K, *p] of real numbers.

    With ``params`` at hand the whole shape is known; without, only that axis 0
    has ``count`` entries, or as many in all leaves.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    shapes: list[tuple[int, ...] | None] = [None] * len(leaves)
    if params is not None:
        if jax.tree.structure(params) != structure:
            hint = ""
            if isinstance(updates, tuple) and len(updates) == 2:
                hint = " value_and_term_grads returns the pair (losses, grads)."
            raise ValueError(
                f"{name}: updates must have the tree structure of params, "
                f"{difference(updates, params)}.{hint}"
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    for (path, leaf), shape in zip(leaves, shapes, strict=True):
        _term_axis_leaf(jnp.shape(leaf), shape, f"updates{keystr(path)}", name, count)
        floating(leaf, f"updates{keystr(path)}", name)
        first, number = jnp.shape(leaves[0][1]), jnp.shape(leaf)[0]
        if number != first[0]:
            raise ValueError(
                f"{name}: all updates must have the same number of terms, found "
                f"{number} in updates{keystr(path)}, shape {jnp.shape(leaf)}, and "
                f"{first[0]} in updates{keystr(leaves[0][0])}, shape {first}. Is the "
                "term axis missing? It comes first in every leaf, shape (num_terms, "
                "*parameter shape)."
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
        hint = f": {_MISSING}"
    elif fits:
        hint = f": num_terms={count}, but the term axis has {found[0]} entries."
    raise ValueError(
        f"{name}: {leaf} must have the term axis first, shape {expected}, found "
        f"shape {found}{hint}"
    )


def term_axis_removed(stepped: Any, updates: Any, name: str) -> None:
    """Refuses an inner transformation that does not turn [K, *p] into [*p]."""
    if jax.tree.structure(stepped) != jax.tree.structure(updates):
        raise ValueError(
            f"{name}: inner must keep the tree structure of the updates, "
            f"{difference(stepped, updates)}."
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


def shapes_kept(stepped: Any, updates: Any, name: str) -> None:
    """Refuses an inner transformation, or its state, that changes the shapes."""
    if jax.tree.structure(stepped) != jax.tree.structure(updates):
        raise ValueError(
            f"{name}: inner must keep the tree structure of the updates, "
            f"{difference(stepped, updates)}."
        )
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(updates),
        jax.tree.leaves(stepped),
        strict=True,
    )
    for (path, leaf), new in pairs:
        if jnp.shape(new) != jnp.shape(leaf):
            raise ValueError(
                f"{name}: inner must keep the shapes of the updates, but "
                f"updates{keystr(path)} goes in with shape {jnp.shape(leaf)} and comes "
                f"out with shape {jnp.shape(new)}: its state was made for other "
                f"parameters, or {_MISSING}"
            )


def difference(found: Any, expected: Any) -> str:
    """Where two trees part, for a message: structures as a whole run over pages."""
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


def state(
    found: Any, init: Callable[[Any], Any], updates: Any, name: str, *, own: Any = None
) -> None:
    """Refuses a state that ``init`` would not make for the parameters of ``updates``.

    Another optimizer's, or one of a checkpoint with another number of terms, would
    else be broadcast without a word. ``own`` names the fields to look at where the
    others hold the state of an inner transformation.
    """
    expected = jax.eval_shape(
        init,
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates
        ),
    )
    origin = "as init or the last update returned it"
    if type(found) is not type(expected):
        raise TypeError(
            f"{name}: state must be a {type(expected).__name__}, {origin}, found "
            f"{type(found).__name__}. Was it made by another transformation?"
        )
    if own is not None:
        others = {field: None for field in expected._fields if field not in own}
        found, expected = found._replace(**others), expected._replace(**others)
    if jax.tree.structure(found) != jax.tree.structure(expected):
        raise ValueError(
            f"{name}: state must be {origin}, made with the same options for the same "
            f"parameters, {difference(found, expected)}."
        )
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, leaf), one in zip(leaves, jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != one.shape:
            raise ValueError(
                f"{name}: state{keystr(path)} must have shape {one.shape}, found shape "
                f"{jnp.shape(leaf)}: it was made for another number of terms or other "
                f"parameters, or {_MISSING}"
            )


def state_by_term(found: Any, name: str, count: int) -> None:
    """Refuses a state whose leaves are not [K, ...]."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        if jnp.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"{name}: state{keystr(path)} must have the term axis first, as init "
                f"made it for num_terms={count}, found shape {jnp.shape(leaf)}: it was "
                "made for another number of terms or by another transformation."
            )
