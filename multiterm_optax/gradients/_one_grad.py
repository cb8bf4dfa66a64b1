"""The loss and the gradient of one term per step, at the cost of one gradient."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _terms, _words
from multiterm_optax._typing import LossesFn
from multiterm_optax.gradients import _inputs
from multiterm_optax.gradients._outputs import split_outputs

# 2**32 over the golden ratio: its multiples lie evenly over 32 bits, however many.
_STRIDE = 2654435769


def value_and_one_grad(
    losses_fn: LossesFn,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    shares: Any = None,
) -> Callable[..., tuple[Any, Any, Bool[Array, " K"]]]:
    r"""As :func:`multiterm_optax.value_and_term_grads`, but for one term in each step.

    The forward and the backward pass visit only what this term depends on, so that a
    step costs no more than the gradient of a single loss. The terms are compiled as the
    branches of :func:`jax.lax.switch`; under ``vmap`` over the step all would run.

    Args:
      losses_fn: As in :func:`multiterm_optax.value_and_term_grads`.
      argnums: As in :func:`multiterm_optax.value_and_term_grads`.
      has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.
      shares: ``None``: the terms take turns. K numbers that are not negative: how often
        each term comes, relative to their sum, spread as evenly as possible.

    Returns:
      A function ``(step, *args, **kwargs)`` with the arguments of ``losses_fn`` after
      ``step``, an integer that counts from 0 and may be traced. It returns ``(losses,
      grads, present)``, or ``((losses, aux), grads, present)`` with ``has_aux``:
      ``losses`` in its structure and every leaf of ``grads`` [K, \*p], with zeros for
      all terms but one, and ``present``, [K] booleans, which say which one. Pass it on
      as the extra argument of that name; :func:`multiterm_optax.one_at_a_time` makes a
      step of all terms from it.

    Raises:
      TypeError: As for :func:`multiterm_optax.value_and_term_grads`, or ``step`` is not
        an integer.
      ValueError: There is no loss, or ``shares`` are not K numbers of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import value_and_one_grad
      >>> def losses_fn(w):
      ...     return {"fit": (w - 1.0) ** 2, "size": w**2}
      >>> value_and_grad = value_and_one_grad(losses_fn)
      >>> for step in range(2):
      ...     _, grads, present = value_and_grad(step, jnp.array(2.0))
      ...     print(grads, present)
      [2. 0.] [ True False]
      [0. 4.] [False  True]
    """
    name = "value_and_one_grad"
    _checks.function(losses_fn, "losses_fn", name)
    if shares is not None:
        _checks.non_negative(shares, "shares", name, array=True)
        if not isinstance(shares, Tracer) and not np.any(np.asarray(shares)):
            raise ValueError(f"{name}: shares must not all be 0, found {shares!r}.")

    @functools.wraps(losses_fn)
    def fn(step: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        _check_step(step, name)
        function, primals = _inputs.of_primals(
            losses_fn, args, kwargs, argnums, has_aux, name
        )
        shapes, _ = jax.eval_shape(function, *primals)
        num_terms = _inputs.count_losses(shapes, name)
        term = _term_of(step, shares, num_terms, name)

        def branch(number: int) -> Callable[..., tuple[Any, Any, Any]]:
            def one(primals: tuple[Any, ...]) -> tuple[Any, Any, Any]:
                losses, linear, aux = jax.linearize(function, *primals, has_aux=True)
                one_loss = split_outputs(linear, primals, num_terms)[number]
                cotangent = jnp.ones_like(jax.eval_shape(one_loss, *primals))
                grads = jax.linear_transpose(one_loss, *primals)(cotangent)
                # XLA does not compute what is not returned, which are the other terms'
                # losses.
                return _only(losses, number), grads, aux

            return one

        branches = [branch(number) for number in range(num_terms)]
        losses, grads, aux = jax.lax.switch(term, branches, primals)
        present = jnp.arange(num_terms) == term

        def among_all(leaf: Array) -> Array:
            stacked = jnp.broadcast_to(leaf, (num_terms, *leaf.shape))
            return _terms.only_present(present, stacked)

        grads = jax.tree.map(among_all, grads)
        picked = grads if isinstance(argnums, Sequence) else grads[0]
        return ((losses, aux) if has_aux else losses), picked, present

    return fn


def _only(losses: Any, number: int) -> Any:
    """Zeros in place of all losses but one."""
    leaves, structure = jax.tree.flatten(losses)
    if len(leaves) == 1 and jnp.ndim(leaves[0]) == 1:
        zeros = jnp.zeros_like(leaves[0])
        return structure.unflatten([zeros.at[number].set(leaves[0][number])])
    picked = [x if i == number else jnp.zeros_like(x) for i, x in enumerate(leaves)]
    return structure.unflatten(picked)


def _check_step(step: Any, name: str) -> None:
    """Refuses what does not count steps, such as the parameters."""
    kind = getattr(step, "dtype", None)
    if kind is None:
        counts = _checks.as_int(step) is not None
    else:
        counts = jnp.issubdtype(kind, jnp.integer) and jnp.shape(step) == ()
    if not counts:
        raise TypeError(
            f"{name}: step must be an integer that counts the steps from 0, found "
            f"{_words.describe(step)}."
        )


def _term_of(step: Any, shares: Any, num_terms: int, name: str) -> jax.Array:
    """The index of the term whose turn it is."""
    if shares is None:
        return jnp.asarray(step % num_terms, jnp.int32)
    ends = jnp.cumsum(_checks.vector(shares, "shares", name, num_terms))
    # Of 32 bits, which wrap around, float32 holds the upper 24 exactly.
    bits = jnp.asarray(step).astype(jnp.uint32) * jnp.uint32(_STRIDE)
    point = (bits >> 8).astype(ends.dtype) / (1 << 24)
    return jnp.searchsorted(ends / ends[-1], point, side="right").astype(jnp.int32)
