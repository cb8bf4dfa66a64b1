"""The gramian of K losses from their linear function, without holding K gradients.

At one point of the parameters the losses' tangents are a linear function J of the
parameters' tangents, and the gramian of the gradients is J J^T. There is more than one
way to it; none outlives its K x K result.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend import core

from multiterm_optax import _products, _terms
from multiterm_optax._typing import Gramian
from multiterm_optax.gradients._inputs import cotangents
from multiterm_optax.gradients._outputs import equations, split_outputs

Way = Literal["leaf", "stack", "forward"]
WAYS = (None, "leaf", "stack", "forward")

# Beyond this many terms an unrolled program takes long to compile.
_MAX_UNROLLED = 16


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
    if way is None:
        way = _choose(linear, primals, num_terms)
    if way == "forward":
        return _forward(linear, primals, losses, num_terms, shared, name)
    if way == "leaf":
        rows = []
        for one_loss in split_outputs(linear, primals, num_terms):
            one = jnp.ones_like(jax.eval_shape(one_loss, *primals))
            rows.append(jax.linear_transpose(one_loss, *primals)(one))
        # Apart as they are, they need not be stacked first.
        parts = list(zip(*map(jax.tree.leaves, rows), strict=True))
        if shared is not None:
            parts = list(itertools.compress(parts, shared))
        return _products.gramian_of_rows(*parts, num_terms=num_terms)
    pullback = jax.linear_transpose(linear, *primals)
    grads = jax.vmap(pullback)(cotangents(losses, jnp.eye(num_terms)))
    leaves = jax.tree.leaves(grads)
    if shared is not None:
        leaves = list(itertools.compress(leaves, shared))
    return _products.gramian(*leaves, num_terms=num_terms)


def _forward(
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    losses: Any,
    num_terms: int,
    shared: list[bool] | None,
    name: str,
) -> Gramian:
    names = {eqn.primitive.name for eqn in equations(_jaxpr(linear, primals))}
    if "custom_lin" in names:
        raise ValueError(
            f"{name}: gramian='forward' needs forward derivatives, which losses_fn "
            "does not have: it calls a function with jax.custom_vjp. Use 'leaf' or "
            "'stack'."
        )
    pullback = jax.linear_transpose(linear, *primals)
    dtype = _terms.accumulator_dtype(*jax.tree.leaves(losses))

    def column(one_hot: jax.Array) -> jax.Array:
        grads = pullback(cotangents(losses, one_hot))
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

    columns = jax.lax.map(column, jnp.eye(num_terms, dtype=dtype))
    return (columns + columns.T) / 2  # each product was found twice


def _choose(
    linear: Callable[..., Any], primals: tuple[Any, ...], num_terms: int
) -> Way:
    if num_terms <= _MAX_UNROLLED:
        return "leaf"
    # The loop's products are the model's own. Accelerators round them to fewer digits
    # than float32 has, and fill up with a batch of passes rather than with one.
    if jax.default_backend() != "cpu":
        return "stack"
    for eqn in equations(_jaxpr(linear, primals)):
        # XLA:CPU has no fast convolution inside a loop.
        if eqn.primitive.name in ("conv_general_dilated", "custom_lin"):
            return "stack"
        for var in eqn.outvars:
            dtype = getattr(var.aval, "dtype", jnp.float32)
            if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
                return "stack"
    return "forward"


def _jaxpr(linear: Callable[..., Any], primals: tuple[Any, ...]) -> core.Jaxpr:
    return jax.make_jaxpr(linear)(*primals).jaxpr
