"""A K -> 1 optimizer for some of the parameters; the others get the plain sum."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step

Mask = Any | Callable[[optax.Params], Any]


def masked(
    inner: optax.GradientTransformation, mask: Mask, num_terms: int
) -> optax.GradientTransformationExtraArgs:
    r"""Applies ``inner`` to some leaves and sums the terms of the others.

    This is :func:`optax.masked` for a transformation from K terms to one update. With
    Optax's, a leaf that is left out would keep its term axis. Here it becomes
    :math:`\sum_i g_i`, the gradient of the summed loss, for the stages that follow.

    For a stage that keeps the term axis, such as
    :func:`multiterm_optax.balance_by_norm`, use :func:`optax.masked` with a tree of
    booleans.

    Args:
      inner: A transformation from K terms to one update, such as ``mtadam(1e-3, K)``
        or a chain with an aggregator. It has state for the chosen leaves only.
      mask: A tree of booleans like the parameters, a prefix of it, or a function of the
        parameters that returns one: True for leaves that go through ``inner``. A
        function sees leaves of the parameters' shapes [\*p], so it may use ``ndim``.
      num_terms: K, the number of terms.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates [\*p]. Its
      state is an :class:`optax.MaskedState`. A term that ``present`` marks as absent is
      left out of the sum.

    Raises:
      TypeError: ``inner`` is not a transformation, or ``mask`` holds anything but
        booleans.
      ValueError: ``mask`` is not a prefix of the updates, ``inner`` leaves the term
        axis on, or an update lacks the leading term axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import adatask, masked
      >>> inner = adatask(optax.scale_by_sign(), num_terms=2)
      >>> tx = masked(inner, {"w": True, "b": False}, num_terms=2)
      >>> grads = {"w": jnp.array([[3.0], [5.0]]), "b": jnp.array([[3.0], [5.0]])}
      >>> state = tx.init({"w": jnp.zeros(1), "b": jnp.zeros(1)})
      >>> updates, state = tx.update(grads, state)
      >>> updates["w"].tolist(), updates["b"].tolist()
      ([2.0], [8.0])
    """
    name = "masked"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    inner = optax.with_extra_args_support(inner)

    def chosen(tree: Any) -> Any:
        """A tree with one boolean for each leaf."""
        flags = mask(tree) if callable(mask) else mask
        return _full_mask(flags, tree, name)

    def keep(flags: Any, tree: Any) -> Any:
        return jax.tree.map(
            lambda flag, leaf: leaf if flag else optax.MaskedNode(), flags, tree
        )

    def init_fn(params: optax.Params) -> optax.MaskedState:
        if not jax.tree.leaves(params):
            # optax.tree.map_params inspects init without leaves.
            return optax.MaskedState(inner.init(params))
        return optax.MaskedState(inner.init(keep(chosen(params), params)))

    def update_fn(
        step: Step, state: optax.MaskedState
    ) -> tuple[optax.Updates, optax.MaskedState]:
        updates, params = step.updates, step.params
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates
        )
        flags = chosen(shapes if params is None else params)
        picked = keep(flags, updates)
        stepped, inner_state = inner.update(
            picked,
            state.inner_state,
            None if params is None else keep(flags, params),
            **step.forwarded(),
        )
        _checks.term_axis_removed(stepped, picked, name)
        _checks.state_keeps_shapes(
            state.inner_state, inner_state, f"{name}: a stage of inner"
        )

        def choose(flag: Any, new: Any, leaf: jax.Array) -> jax.Array:
            return new if flag else _terms.sum_terms(leaf)

        return (
            jax.tree.map(choose, flags, stepped, updates),
            optax.MaskedState(inner_state),
        )

    return _stages.stage(name, num_terms, init_fn, update_fn, inner="inner_state")


def _full_mask(flags: Any, tree: Any, name: str) -> Any:
    for path, flag in jax.tree_util.tree_leaves_with_path(flags):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(
                f"{name}: mask must hold booleans that are not arrays, found {flag!r} "
                f"in mask{jax.tree_util.keystr(path)}."
            )
    return _checks.for_each_leaf(
        flags, tree, "mask", name, holds="booleans", like="updates"
    )
