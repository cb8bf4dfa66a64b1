"""What a factory is given: numbers, choices, functions and transformations."""

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from multiterm_optax import _named, _words


def as_int(value: Any) -> int | None:
    """Returns ``value`` as a Python int, or None for what is not one."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, jax.errors.JAXTypeError):
        return None


def static_int(
    value: Any, argument: str, name: str, *, low: int, high: int | None = None
) -> int:
    """Returns ``value`` as a Python int within bounds."""
    expected = f"at least {low}" if high is None else f"in [{low}, {high}]"
    number = as_int(value)
    if number is None:
        found = _words.describe(value)
        if isinstance(value, Tracer):
            found = (
                "a traced value; under optax.inject_hyperparams pass "
                f"static_args=('{argument}',)"
            )
        raise TypeError(
            f"{name}: {argument} must be a static Python int, {expected}, found "
            f"{found}."
        )
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: {argument} must be {expected}, found {value!r}.")
    return number


def num_terms(value: Any, name: str) -> int:
    """Returns ``value`` as a static int of at least 1."""
    return static_int(value, "num_terms", name, low=1)


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
    """Refuses what is not a number, or is known to lie outside an interval.

    Tracers pass. ``array`` allows several numbers, as an array or in a tree.
    """
    leaves = jax.tree_util.tree_leaves_with_path(value) if array else []
    traced = any(isinstance(leaf, Tracer) for path, leaf in leaves if path)
    if traced or (array and _named.is_tree(value)):
        for path, leaf in leaves:
            in_range(
                leaf,
                f"{argument}{jax.tree_util.keystr(path)}",
                name,
                low=low,
                high=high,
                open_low=open_low,
                open_high=open_high,
            )
        return
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
            f"{name}: {argument} must be a number, found {_words.describe(value)}."
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
    # For an array ``in`` has no single answer.
    if isinstance(value, jax.Array | np.ndarray) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"{name}: {argument} must be one of {listed}, found "
            f"{_words.describe(value)}."
        )


def vector(value: Any, argument: str, name: str, num_terms: int) -> jax.Array:
    """Returns K non-negative numbers, in an array or a tree, as an array [K]."""
    numbers = _named.by_name(value, argument, name)
    try:
        array = jnp.asarray(numbers, dtype=jnp.result_type(float))
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: {argument} must be {num_terms} numbers, one for each term"
            f"{_named.in_order(num_terms)}, found {_words.describe(value)}."
        ) from None
    if array.shape != (num_terms,):
        raise ValueError(
            f"{name}: {argument} must have shape ({num_terms},), one value for each of "
            f"num_terms={num_terms} terms{_named.in_order(num_terms)}, found shape "
            f"{array.shape}{_named.listed(value)}."
        )
    traced = any(isinstance(one, Tracer) for one in jax.tree.leaves(value))
    non_negative(array if traced else value, argument, name, array=True)
    return array


def preference(value: Any, name: str) -> Callable[..., Any]:
    """Returns ``of(num_terms, default=None)``: the K numbers of a preference.

    Negative numbers are refused at once, all else as soon as K is known. Without a
    preference it is the default.
    """
    if value is not None:
        # What is no number is refused with K, which the message then names.
        with contextlib.suppress(TypeError):
            non_negative(value, "preference", name, array=True)

    def of(num_terms: int, default: Any = None) -> Any:
        if value is None:
            return default
        return vector(value, "preference", name, num_terms)

    return of


def number_or_vector(
    value: Any, argument: str, name: str, num_terms: int, dtype: Any = None
) -> jax.Array:
    """Returns one number for all terms, or one for each, as an array [K]."""
    array = jnp.asarray(_named.by_name(value, argument, name), dtype)
    if array.shape not in ((), (num_terms,)):
        raise ValueError(
            f"{name}: {argument} must be a number or have shape ({num_terms},), one "
            f"value for each term{_named.in_order(num_terms)}, found shape "
            f"{array.shape}{_named.listed(value)}."
        )
    return jnp.broadcast_to(array, (num_terms,))


def term_index(
    value: Any, argument: str, name: str, num_terms: int | None = None
) -> int:
    """Returns ``value`` as the static index of a term, in range if K is known."""
    index = as_int(value)
    if index is None:
        raise TypeError(
            f"{name}: {argument} must be None or the index of a term, found "
            f"{_words.describe(value)}."
        )
    if num_terms is not None and not 0 <= index < num_terms:
        raise ValueError(
            f"{name}: {argument} must be in [0, {num_terms - 1}] for "
            f"num_terms={num_terms}, found {index}."
        )
    return index


def term(
    value: Any, argument: str, name: str, num_terms: int | None = None
) -> int | str:
    """Refuses what is neither the index nor the name of a term, as far as is known."""
    if isinstance(value, str):
        return value
    return term_index(value, argument, name, num_terms)


def term_at(value: Any, argument: str, name: str, num_terms: int) -> int:
    """The index of a term that is given by its index or by its name."""
    if not isinstance(value, str):
        return term_index(value, argument, name, num_terms)
    terms = _named.current()
    if terms is not None and terms.abstract:
        return 0
    if terms is None or terms.names is None:
        found = "no losses" if terms is None else str(terms)
        raise ValueError(
            f"{name}: {argument}={value!r} must be the name of one of the losses: pass "
            "them to update as losses=losses, structured as losses_fn returns them, or "
            f"name the term by its index, found {found}."
        )
    if value not in terms.names:
        raise ValueError(
            f"{name}: {argument} must be the index or the name of a term, one of "
            f"{terms.order or terms}, found {value!r}."
        )
    return terms.names.index(value)


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


def function(value: Any, argument: str, name: str) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        raise TypeError(
            f"{name}: {argument} must be a function (itself, not what it returns), "
            f"found {_words.describe(value)}."
        )


def transformation(value: Any, argument: str, name: str) -> None:
    """Refuses what is not an Optax transformation."""
    # A weighting has init and update, too.
    weighting = hasattr(value, "reads_gramian")
    if weighting or not (hasattr(value, "init") and hasattr(value, "update")):
        hint = " A transformation with its weights is reweight(weighting, num_terms)."
        hint = hint if weighting else ""
        raise TypeError(
            f"{name}: {argument} must be an optax.GradientTransformation, such "
            f"as optax.adam(1e-3), found {_words.describe(value)}.{hint}"
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


def for_each_leaf(
    given: Any, tree: Any, argument: str, name: str, *, holds: str, like: str
) -> Any:
    """Returns ``given``, a tree like ``tree`` or a prefix of it, with every leaf."""
    try:
        return jax.tree.broadcast(given, tree)
    except ValueError as error:
        raise ValueError(
            f"{name}: {argument} must be a tree of {holds} with the structure of the "
            f"{like}, {jax.tree.structure(tree)}, or a prefix of it, found "
            f"{jax.tree.structure(given)}."
        ) from error
