"""Losses and per-term gradients: one forward pass, K backward passes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax import _checks
from multiterm_optax._typing import LossesFn
from multiterm_optax.gradients._outputs import split_outputs

# Beyond this many terms an unrolled program takes long to compile.
_MAX_UNROLLED = 16

Passes = Literal["unroll", "vmap", "loop"]


def value_and_term_grads(
    losses_fn: LossesFn,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    passes: Passes | None = None,
) -> Callable[..., tuple[Any, Any]]:
    r"""Losses and the gradient of each of them, as ``jax.value_and_grad`` for K losses.

    For :math:`L : \mathbb{R}^P \to \mathbb{R}^K` the function returned computes
    :math:`L(\theta)` and the rows of its Jacobian,
    :math:`g_i = \nabla_\theta L_i(\theta)`, in one forward pass and K backward
    passes. A term costs nothing for parameters it does not touch.

    Args:
      losses_fn: Function ``losses_fn(*args, **kwargs)`` that returns an array
        ``[K]`` or a pytree of K scalars. A dict names the terms; JAX orders its
        keys alphabetically, and that is the order of the term axis
        (``jax.tree.leaves(losses)``).
      argnums: Positional argument, or arguments, to differentiate.
      has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.
      passes: How the K backward passes run. ``"unroll"`` writes them one after
        another, so that XLA shares what they have in common and drops what a term
        does not touch; ``"vmap"`` batches them (more memory, short programs);
        ``"loop"`` runs them in a loop (least memory; very slow for convolutions
        on CPU). ``None``: ``"unroll"`` up to 16 terms, ``"vmap"`` beyond.

    Returns:
      A function with the arguments of ``losses_fn`` that returns
      ``(losses, grads)``, or ``((losses, aux), grads)`` with ``has_aux``.
      ``losses`` keeps its structure. Every leaf of ``grads`` is ``[K, *p]`` in the
      parameter's dtype; with several ``argnums`` it is a tuple of such trees.

    Raises:
      TypeError: A loss is not a real floating-point scalar (or ``[K]`` array), or
        a parameter is not real floating point.
      ValueError: ``losses_fn`` returns no loss, or ``passes`` is not a choice.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import value_and_term_grads
      >>> def losses_fn(params, x):
      ...     return {"fit": (params["w"] * x - 1.0) ** 2, "size": params["w"] ** 2}
      >>> losses, grads = value_and_term_grads(losses_fn)({"w": jnp.array(2.0)}, 3.0)
      >>> {name: float(loss) for name, loss in losses.items()}
      {'fit': 25.0, 'size': 4.0}
      >>> grads["w"].tolist()
      [30.0, 4.0]
    """
    name = "value_and_term_grads"
    _checks.one_of(passes, "passes", name, (None, "unroll", "vmap", "loop"))

    @functools.wraps(losses_fn)
    def fn(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        primals = tuple(_argument(args, number, name) for number in numbers)
        for number, primal in zip(numbers, primals, strict=True):
            _check_parameters(primal, number, name)

        def of_primals(*chosen: Any) -> tuple[Any, Any]:
            full = list(args)
            for number, value in zip(numbers, chosen, strict=True):
                full[number] = value
            result = losses_fn(*full, **kwargs)
            if not has_aux:
                return result, None
            if not (isinstance(result, tuple) and len(result) == 2):
                raise TypeError(
                    f"{name}: with has_aux=True losses_fn must return a pair "
                    f"(losses, aux), found {type(result).__name__}."
                )
            return result

        losses, aux, grads = _differentiate(of_primals, primals, passes, name)
        picked = grads[0] if isinstance(argnums, int) else grads
        return ((losses, aux) if has_aux else losses), picked

    return fn


def term_grads(
    losses_fn: LossesFn,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    passes: Passes | None = None,
) -> Callable[..., Any]:
    """The gradients of :func:`value_and_term_grads` alone, as ``jax.grad``.

    Args:
      losses_fn: As in :func:`value_and_term_grads`.
      argnums: As in :func:`value_and_term_grads`.
      has_aux: As in :func:`value_and_term_grads`.
      passes: As in :func:`value_and_term_grads`.

    Returns:
      A function that returns ``grads``, or ``(grads, aux)`` with ``has_aux``.

    Raises:
      TypeError: As :func:`value_and_term_grads`.
      ValueError: As :func:`value_and_term_grads`.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import term_grads
      >>> term_grads(lambda w: jnp.stack([w**2, 3 * w]))(jnp.array(2.0)).tolist()
      [4.0, 3.0]
    """
    both = value_and_term_grads(losses_fn, argnums, has_aux, passes=passes)

    @functools.wraps(losses_fn)
    def fn(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return fn


def _differentiate(
    of_primals: Callable[..., tuple[Any, Any]],
    primals: tuple[Any, ...],
    passes: Passes | None,
    name: str,
) -> tuple[Any, Any, tuple[Any, ...]]:
    if passes in ("vmap", "loop"):
        losses, pullback, aux = jax.vjp(of_primals, *primals, has_aux=True)
        _check_losses(losses, name)
        return losses, aux, _batched_passes(pullback, losses, passes)
    losses, linear, aux = jax.linearize(of_primals, *primals, has_aux=True)
    num_terms = _check_losses(losses, name)
    if passes is None and num_terms > _MAX_UNROLLED:
        # The linear function is at hand: transposing it whole is the same pullback.
        pullback = jax.linear_transpose(linear, *primals)
        return losses, aux, _batched_passes(pullback, losses, "vmap")
    rows = []
    for one_loss in split_outputs(linear, primals, num_terms):
        cotangent = jnp.ones_like(jax.eval_shape(one_loss, *primals))
        rows.append(jax.linear_transpose(one_loss, *primals)(cotangent))
    return losses, aux, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def _batched_passes(
    pullback: Callable[[Any], tuple[Any, ...]], losses: Any, passes: Passes
) -> tuple[Any, ...]:
    flat, structure = jax.tree.flatten(losses)
    if len(flat) == 1 and jnp.ndim(flat[0]) == 1:
        cotangents = structure.unflatten(
            [jnp.eye(flat[0].shape[0], dtype=flat[0].dtype)]
        )
    else:
        hots = jnp.eye(len(flat))
        cotangents = structure.unflatten(
            [hots[:, i].astype(loss.dtype) for i, loss in enumerate(flat)]
        )
    if passes == "vmap":
        return jax.vmap(pullback)(cotangents)
    return jax.lax.map(pullback, cotangents)


def _argument(args: tuple[Any, ...], number: int, name: str) -> Any:
    if not -len(args) <= number < len(args):
        raise ValueError(
            f"{name}: argnums={number} must name one of the {len(args)} positional "
            "arguments given."
        )
    return args[number]


def _check_parameters(primal: Any, number: int, name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(primal):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}: argument {number}{keystr(path)} must be real floating point "
                f"to be differentiated, found {dtype}."
            )


def _check_losses(losses: Any, name: str) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(losses)
    if not leaves:
        raise ValueError(
            f"{name}: losses_fn must return at least one loss, found none."
        )
    for path, leaf in leaves:
        where = f"losses{keystr(path)}"
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name}: {where} must be real floating point, found "
                f"{jnp.result_type(leaf)}."
            )
        if jnp.ndim(leaf) != 0 and not (len(leaves) == 1 and jnp.ndim(leaf) == 1):
            raise TypeError(
                f"{name}: losses_fn must return an array [K] or a pytree of K scalars; "
                f"{where} has shape {jnp.shape(leaf)}."
            )
    if jnp.ndim(leaves[0][1]) == 0:
        return len(leaves)
    count = jnp.shape(leaves[0][1])[0]
    if count == 0:
        raise ValueError(f"{name}: losses_fn must return at least one loss, found [0].")
    return count
