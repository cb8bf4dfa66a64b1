"""Losses and per-term gradients: one forward pass, K backward passes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from multiterm_optax import _checks
from multiterm_optax._typing import LossesFn
from multiterm_optax.gradients import _inputs, _passes
from multiterm_optax.gradients._passes import Passes


def value_and_term_grads(
    losses_fn: LossesFn,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    passes: Passes | None = None,
) -> Callable[..., tuple[Any, Any]]:
    r"""Losses and the gradient of each, like ``jax.value_and_grad`` for K losses.

    For :math:`L : \mathbb{R}^P \to \mathbb{R}^K` it computes :math:`L(\theta)` and the
    rows of its Jacobian, :math:`g_i = \nabla_\theta L_i(\theta)`, in one forward pass
    and K backward passes.

    Args:
      losses_fn: Function ``losses_fn(*args, **kwargs)`` that returns an array ``[K]``
        or a pytree of K scalars. A dict names the terms; their order is that of
        ``jax.tree.leaves(losses)``, which sorts the keys alphabetically.
      argnums: Positional argument, or arguments, to differentiate.
      has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.
      passes: How the K backward passes run. ``"unroll"``: one after another, so that
        XLA shares what they have in common; ``"vmap"``: in a batch (more memory; can be
        wrong on CPU with jaxlib 0.10, as ``jax.jacrev`` is); ``"loop"``: in a loop
        (least memory; very slow for convolutions on CPU). ``None``: the fastest by
        measurement. That is ``"unroll"`` for terms that have hardly an operation in
        common; else ``"vmap"`` on accelerators; on CPU, up to 16 terms, ``"vmap"`` for
        attention and scans and else ``"unroll"``. Beyond, it is ``"vmap"`` with
        convolutions and else a loop, for attention and scans over batches of up to 8
        passes. Where ``"vmap"`` can be wrong nothing is batched, nor are up to 16 terms
        in a mesh of several devices.

    Returns:
      A function with the arguments of ``losses_fn`` that returns ``(losses, grads)``,
      or ``((losses, aux), grads)`` with ``has_aux``. ``losses`` keeps its structure.
      Every leaf of ``grads`` is ``[K, *p]`` in the parameter's dtype; with several
      ``argnums`` it is a tuple of such trees. The gradient of a complex parameter
      :math:`x + iy` is, as that of ``jax.grad``, :math:`\partial_x L_i - i\,
      \partial_y L_i`: its conjugate points uphill.

    Raises:
      TypeError: A loss is not a real floating-point scalar (or ``[K]`` array), or
        a parameter is not floating point.
      ValueError: ``losses_fn`` returns no loss, or ``passes`` is not one of the
        choices.

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
    _checks.function(losses_fn, "losses_fn", name)
    _checks.one_of(passes, "passes", name, _passes.PASSES)

    @functools.wraps(losses_fn)
    def fn(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        function, primals = _inputs.of_primals(
            losses_fn, args, kwargs, argnums, has_aux, name, complex_too=True
        )
        losses, linear, aux = jax.linearize(function, *primals, has_aux=True)
        num_terms = _inputs.count_losses(losses, name)
        grads = _passes.of_each_term(linear, primals, losses, num_terms, passes)
        picked = grads if isinstance(argnums, Sequence) else grads[0]
        return ((losses, aux) if has_aux else losses), picked

    return fn


def term_grads(
    losses_fn: LossesFn,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    passes: Passes | None = None,
) -> Callable[..., Any]:
    """The gradients of :func:`value_and_term_grads` only, like ``jax.grad``.

    Args:
      losses_fn: As in :func:`value_and_term_grads`.
      argnums: As in :func:`value_and_term_grads`.
      has_aux: As in :func:`value_and_term_grads`.
      passes: As in :func:`value_and_term_grads`.

    Returns:
      A function that returns ``grads``, or ``(grads, aux)`` with ``has_aux``.

    Raises:
      TypeError: As for :func:`value_and_term_grads`.
      ValueError: As for :func:`value_and_term_grads`.

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
