"""What comes with a step: updates, losses, and the mask of the present terms."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax import _named, _words


def _kind_of(value: Any) -> Any:
    """Dtype of a number or an array, None for anything else."""
    if hasattr(value, "dtype") or isinstance(value, int | float | complex):
        return jnp.result_type(value)
    return None


def _is_complex(value: Any) -> bool:
    kind = _kind_of(value)
    return kind is not None and jnp.issubdtype(kind, jnp.complexfloating)


def real(value: Any, argument: str, name: str) -> None:
    """Refuses what is not a real number: complex numbers, booleans, text."""
    kind = _kind_of(value)
    if kind is None or not (
        jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    ):
        raise TypeError(
            f"{name}: {argument} must be real numbers, found "
            f"{_words.describe(value) if kind is None else kind}."
        )


def floating(
    value: Any, argument: str, name: str, why: str = "", if_complex: str = ""
) -> None:
    """Refuses what is not of a real floating-point dtype."""
    kind = _kind_of(value)
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        hint = f" {if_complex}" if if_complex and _is_complex(value) else ""
        raise TypeError(
            f"{name}: {argument} must be real floating point{why}, found "
            f"{_words.describe(value) if kind is None else kind}.{hint}"
        )


def differentiable(
    value: Any, argument: str, name: str, *, complex_too: bool = False
) -> None:
    """Refuses a parameter that cannot be differentiated."""
    if complex_too and _is_complex(value):
        return
    # Layers hold functions, and switches such as dropout's.
    of_a_model = _kind_of(value) is None or isinstance(value, bool)
    why = " to be differentiated"
    try:
        floating(value, argument, name, why, _words.COMPLEX_PARAMETERS)
    except TypeError as error:
        hint = f" {_words.MODEL}" if of_a_model else ""
        raise TypeError(f"{error}{hint}") from None


def arrays(params: Any, name: str) -> None:
    """Refuses parameters that include anything but arrays, such as a function."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if _kind_of(leaf) is None:
            raise TypeError(
                f"{name}: params{keystr(path)} must be an array, found "
                f"{_words.describe(leaf)}. {_words.MODEL}"
            )


def present(value: Any, name: str, num_terms: int) -> jax.Array | None:
    """Returns the mask of the terms present in this step, or None for all."""
    if value is None:
        return None
    flags = _named.by_name(value, "present", name)
    try:
        mask = jnp.asarray(flags)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: present must be an array of {num_terms} booleans"
            f"{_named.in_order(num_terms)}, or a tree of them like the losses, found "
            f"{_words.describe(value)}."
        ) from None
    if mask.dtype != jnp.bool_ or mask.shape != (num_terms,):
        raise ValueError(
            f"{name}: present must be an array of booleans of shape ({num_terms},)"
            f"{_named.in_order(num_terms)}, or a tree of them like the losses, True "
            f"where a term is present, found dtype {mask.dtype} and shape {mask.shape}"
            f"{_named.listed(value)}."
        )
    return mask


def losses(
    value: Any, name: str, num_terms: int, *, needed: bool = False
) -> jax.Array | None:
    """Returns the losses as an array [K], in the order of their leaves, or None."""
    if value is None:
        if needed:
            raise ValueError(
                f"{name}: this weighting reads the losses; pass the extra argument "
                "losses, as in tx.update(grads, state, params, losses=losses), found "
                "none."
            )
        return None
    leaves = jax.tree_util.tree_leaves_with_path(value)
    for path, leaf in leaves:
        real(leaf, f"losses{keystr(path)}", name)
    is_vector = len(leaves) == 1 and jnp.ndim(leaves[0][1]) == 1
    if not is_vector:
        for path, leaf in leaves:
            if jnp.ndim(leaf) != 0:
                raise ValueError(
                    f"{name}: losses must be an array [K] or a pytree of K scalars; "
                    f"losses{keystr(path)} has shape {jnp.shape(leaf)}."
                )
    found = jnp.shape(leaves[0][1])[0] if is_vector else len(leaves)
    if found != num_terms:
        raise ValueError(
            f"{name}: losses must hold num_terms={num_terms} values, found {found}"
            f"{_named.listed(value)}."
        )
    parts = [jnp.asarray(leaf) for _, leaf in leaves]
    vector = parts[0] if is_vector else jnp.stack(parts)
    return vector.astype(jnp.result_type(vector, jnp.float32))


def present_in(value: Any, updates: Any, name: str) -> jax.Array | None:
    """As :func:`present`, with K from updates that :func:`term_axis` has accepted."""
    leaves = jax.tree.leaves(updates)
    return present(value, name, jnp.shape(leaves[0])[0]) if leaves else None


def _trees_like(updates: Any, params: Any) -> bool:
    """Whether the updates are a list, a tuple or a dict of trees like ``params``."""
    if not isinstance(updates, list | tuple | dict):
        return False
    trees = updates.values() if isinstance(updates, dict) else updates
    structure = jax.tree.structure(params)
    return all(jax.tree.structure(tree) == structure for tree in trees)


def term_axis(
    updates: Any, params: Any, name: str, num_terms: int | None = None
) -> None:
    """Refuses updates whose leaves are not [K, *p] of real numbers.

    With ``params`` the full shape is checked. Without them only axis 0 is: it must have
    ``num_terms`` entries or, where that is None, equally many in all leaves.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    shapes: list[tuple[int, ...] | None] = [None] * len(leaves)
    if params is not None:
        if jax.tree.structure(params) != structure:
            hint = ""
            if _trees_like(updates, params):
                hint = " stack_terms makes updates from one gradient for each term."
            elif isinstance(updates, tuple) and len(updates) == 2:
                hint = " value_and_term_grads returns the pair (losses, grads)."
            elif any(_kind_of(leaf) is None for leaf in jax.tree.leaves(params)):
                hint = f" {_words.MODEL}"
            raise ValueError(
                f"{name}: updates must have the tree structure of params, "
                f"{_words.difference(updates, params)}.{hint}"
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    for (path, leaf), shape in zip(leaves, shapes, strict=True):
        _term_axis_leaf(
            jnp.shape(leaf), shape, f"updates{keystr(path)}", name, num_terms
        )
        floating(
            leaf, f"updates{keystr(path)}", name, if_complex=_words.COMPLEX_UPDATES
        )
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
    num_terms: int | None,
) -> None:
    lead = "num_terms" if num_terms is None else str(num_terms)
    if parameter is None:
        tail, fits = "*parameter shape", len(found) >= 1
    else:
        tail = ", ".join(map(str, parameter))
        fits = len(found) == len(parameter) + 1 and found[1:] == parameter
    if fits and (num_terms is None or found[0] == num_terms):
        return
    expected = f"({lead}, {tail})" if tail else f"({lead},)"
    hint = "."
    if found == parameter or (parameter is None and not found):
        hint = f": {_words.MISSING}"
    elif fits:
        order = "" if num_terms is None else _named.in_order(num_terms)
        hint = (
            f": num_terms={num_terms}{order}, but the term axis has {found[0]} entries."
        )
    raise ValueError(
        f"{name}: {leaf} must have the term axis first, shape {expected}, found "
        f"shape {found}{hint}"
    )


def term_axis_removed(stepped: Any, updates: Any, name: str) -> None:
    """Refuses an inner transformation that does not turn [K, *p] into [*p]."""
    hint = f". {_words.AGGREGATOR} is missing in inner."
    _check_inner(stepped, updates, name, "remove the term axis", 1, hint)


def shapes_kept(stepped: Any, updates: Any, name: str) -> None:
    """Refuses an inner transformation, or its state, that changes the shapes."""
    hint = f": its state was made for other parameters, or {_words.MISSING}"
    _check_inner(stepped, updates, name, "keep the shapes of the updates", 0, hint)


def _check_inner(
    stepped: Any, updates: Any, name: str, task: str, removed: int, hint: str
) -> None:
    """Refuses shapes other than the updates' without their first ``removed`` axes."""
    if jax.tree.structure(stepped) != jax.tree.structure(updates):
        raise ValueError(
            f"{name}: inner must keep the tree structure of the updates, "
            f"{_words.difference(stepped, updates)}."
        )
    before = jax.tree_util.tree_leaves_with_path(updates)
    for (path, leaf), new in zip(before, jax.tree.leaves(stepped), strict=True):
        expected = jnp.shape(leaf)[removed:]
        if jnp.shape(new) != expected:
            raise ValueError(
                f"{name}: inner must {task}, but updates{keystr(path)} goes in with "
                f"shape {jnp.shape(leaf)} and comes out with shape {jnp.shape(new)}, "
                f"expected {expected}{hint}"
            )
