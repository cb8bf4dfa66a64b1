"""The gramian of K losses from their linear function, without holding K gradients.

At one point of the parameters the losses' tangents are a linear function J of the
parameters' tangents, and the gramian of the gradients is J J^T. There is more than one
way to it; none outlives its K x K result, or the K numbers of its diagonal.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from multiterm_optax import _products, _terms
from multiterm_optax._typing import Gramian, Norms
from multiterm_optax.gradients import _passes
from multiterm_optax.gradients._outputs import equations
from multiterm_optax.gradients._passes import Passes

Way = Literal["leaf", "stack", "forward"]
WAYS = (None, "leaf", "stack", "forward")

_PASSES: dict[Way, Passes] = {"leaf": "unroll", "stack": "vmap", "forward": "loop"}


def gramian_of(
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    losses: Any,
    *,
    num_terms: int,
    way: Way | None,
    shared: list[bool] | None,
    name: str,
) -> Gramian:
    """Returns the dot products [K, K] of the rows of ``linear``.

    ``shared`` says for each leaf of ``primals`` whether it takes part; None: all do.
    """
    passes = _PASSES[way] if way else _choose(linear, primals, num_terms)
    if passes == "loop":
        return _forward(linear, primals, losses, num_terms, shared, name)
    if passes == "unroll":
        # Apart as they are, the gradients need not be stacked first.
        rows = _passes.unrolled(linear, primals, num_terms)
        parts = zip(*(_chosen(row, shared) for row in rows), strict=True)
        return _products.gramian_of_rows(*parts, num_terms=num_terms)
    leaves = _passes.of_each_term(
        lambda grads: _chosen(grads, shared),
        linear,
        primals,
        losses,
        num_terms,
        passes,
    )
    return _products.gramian(*leaves, num_terms=num_terms)


def squared_norms_of(
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    losses: Any,
    *,
    num_terms: int,
    way: Way | None,
    shared: list[bool] | None,
    name: str,
) -> Norms:
    """Returns the diagonal [K] of :func:`gramian_of`, by backward passes alone.

    No way needs a forward derivative, and so none refuses a function.
    """
    del name
    passes = _PASSES[way] if way else _passes.choose(linear, primals, num_terms)

    def squared(grads: Any) -> jax.Array:
        leaves = (leaf[None] for leaf in _chosen(grads, shared))
        return _products.squared_norms(*leaves, num_terms=1)[0]

    return _passes.of_each_term(squared, linear, primals, losses, num_terms, passes)


def _chosen(grads: Any, shared: list[bool] | None) -> list[jax.Array]:
    leaves = jax.tree.leaves(grads)
    return leaves if shared is None else list(itertools.compress(leaves, shared))


def _forward(
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    losses: Any,
    num_terms: int,
    shared: list[bool] | None,
    name: str,
) -> Gramian:
    if "custom_lin" in {eqn.primitive.name for eqn in equations(linear, primals)}:
        raise ValueError(
            f"{name}: gramian='forward' needs forward derivatives, which losses_fn "
            "does not have: it calls a function with jax.custom_vjp. Use 'leaf' or "
            "'stack'."
        )
    dtype = _terms.accumulator_dtype(*jax.tree.leaves(losses))

    def column(grads: Any) -> jax.Array:
        if shared is not None:
            leaves, structure = jax.tree.flatten(grads)
            grads = structure.unflatten(
                [
                    leaf if flag else jnp.zeros_like(leaf)
                    for leaf, flag in zip(leaves, shared, strict=True)
                ]
            )
        along = jax.tree.leaves(linear(*grads))
        flat = [jnp.asarray(leaf, dtype) for leaf in along]
        return flat[0] if flat[0].ndim else jnp.stack(flat)

    columns = _passes.of_each_term(column, linear, primals, losses, num_terms, "loop")
    return (columns + columns.T) / 2  # each product was found twice


def _choose(
    linear: Callable[..., Any], primals: tuple[Any, ...], num_terms: int
) -> Passes:
    passes = _passes.choose(linear, primals, num_terms)
    if passes == "loop" and any(map(_spoils_forward, equations(linear, primals))):
        return "vmap"
    return passes


def _spoils_forward(eqn: Any) -> bool:
    # The products of a loop are the model's own: there must be forward derivatives,
    # and they must not be rounded to fewer digits than float32 has.
    dtypes = [getattr(var.aval, "dtype", jnp.float32) for var in eqn.outvars]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return eqn.primitive.name == "custom_lin" or any(
        jnp.finfo(dtype).bits < 32 for dtype in floats
    )
