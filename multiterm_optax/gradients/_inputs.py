"""Reads and checks the arguments of all functions that differentiate losses."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax import _checks
from multiterm_optax._typing import LossesFn


def of_primals(
    losses_fn: LossesFn,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    name: str,
    *,
    complex_too: bool = False,
) -> tuple[Callable[..., tuple[Any, Any]], tuple[Any, ...]]:
    """Returns ``(losses, aux)`` as a function of chosen arguments, and these."""
    numbers = argument_numbers(argnums, name)
    primals = tuple(_argument(args, number, name) for number in numbers)
    for number, primal in zip(numbers, primals, strict=True):
        check_parameters(primal, f"argument {number}", name, complex_too=complex_too)

    def function(*chosen: Any) -> tuple[Any, Any]:
        full = list(args)
        for number, value in zip(numbers, chosen, strict=True):
            full[number] = value
        result = losses_fn(*full, **kwargs)
        if not has_aux:
            count_losses(result, name)
            return result, None
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"{name}: with has_aux=True losses_fn must return a pair "
                f"(losses, aux), found {_what(result)}."
            )
        count_losses(result[0], name)
        return result

    return function, primals


def argument_numbers(argnums: Any, name: str) -> tuple[int, ...]:
    """Returns ``argnums`` as a tuple of at least one int, without repetitions."""
    several = isinstance(argnums, Sequence) and not isinstance(argnums, str)
    numbers = [_checks.as_int(one) for one in (argnums if several else [argnums])]
    static = tuple(one for one in numbers if one is not None)
    if len(static) < len(numbers):
        raise TypeError(
            f"{name}: argnums must be an int or a sequence of ints, the positions of "
            f"the arguments to differentiate, found {argnums!r}."
        )
    if len(set(static)) != len(static) or not static:
        raise ValueError(
            f"{name}: argnums must name each argument to differentiate once, found "
            f"{argnums!r}."
        )
    return static


def check_parameters(
    params: Any, argument: str, name: str, *, complex_too: bool = False
) -> None:
    """Refuses parameters that cannot be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"{argument}{keystr(path)}"
        _checks.differentiable(leaf, where, name, complex_too=complex_too)


def count_losses(losses: Any, name: str) -> int:
    """Returns K; refuses losses that are not an array [K] or a pytree of K scalars."""
    leaves = jax.tree_util.tree_leaves_with_path(losses)
    if not leaves:
        raise ValueError(
            f"{name}: losses_fn must return at least one loss, found none."
        )
    for path, leaf in leaves:
        where = f"losses{keystr(path)}"
        _checks.floating(leaf, where, name)
        if jnp.ndim(leaf) != 0 and not (len(leaves) == 1 and jnp.ndim(leaf) == 1):
            hint = ""
            if isinstance(losses, tuple) and len(losses) == 2:
                hint = " If it returns (losses, aux), pass has_aux=True."
            raise TypeError(
                f"{name}: losses_fn must return an array [K] or a pytree of K scalars; "
                f"{where} has shape {jnp.shape(leaf)}.{hint}"
            )
    if jnp.ndim(leaves[0][1]) == 0:
        return len(leaves)
    num_terms = jnp.shape(leaves[0][1])[0]
    if num_terms == 0:
        raise ValueError(f"{name}: losses_fn must return at least one loss, found [0].")
    return num_terms


def cotangents(losses: Any, weights: jax.Array) -> Any:
    """Weights [..., K] in the structure and the dtypes of the losses."""
    flat, structure = jax.tree.flatten(losses)
    if len(flat) == 1 and jnp.ndim(flat[0]) == 1:
        return structure.unflatten([weights.astype(flat[0].dtype)])
    return structure.unflatten(
        [weights[..., i].astype(loss.dtype) for i, loss in enumerate(flat)]
    )


def _argument(args: tuple[Any, ...], number: int, name: str) -> Any:
    if not -len(args) <= number < len(args):
        raise ValueError(
            f"{name}: argnums={number} must name one of the {len(args)} positional "
            "arguments given; those to differentiate cannot be passed by name."
        )
    return args[number]


def _what(result: Any) -> str:
    shape = getattr(result, "shape", None)
    return type(result).__name__ if shape is None else f"an array of shape {shape}"
