# Longer than most: each way has its own order of passes and products.
"""The gramian of K losses from their linear function, without keeping K gradients.

At one point of the parameters the losses' tangents are a linear function J of the
parameters' tangents, and the gramian of the gradients is J J^T. There are several ways
to compute it. Each leaves only the K x K result, or its diagonal, in memory. If no way
is asked for, no gradients are made where cotangents and activations suffice at a lower
cost.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from multiterm_optax import _products, _terms
from multiterm_optax._typing import Gramian, Norms
from multiterm_optax.gradients import _cut_products, _cuts, _passes, _programs
from multiterm_optax.gradients._passes import Chosen
from multiterm_optax.gradients._programs import equations

Way = Literal["leaf", "stack", "forward"]
WAYS = (None, "leaf", "stack", "forward")

_PASSES: dict[Way | None, Chosen] = {
    "leaf": "unroll",
    "stack": "vmap",
    "forward": "loop",
}


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

    ``shared`` says for each leaf of ``primals`` whether it is included; None: all are.
    """
    if shared is not None:
        linear, primals = _programs.restrict(linear, primals, shared)
    program = _cuts.find(linear, primals, _worth(way, num_terms, norms=False))
    if _fits(program, num_terms):
        return _of_cuts(program, losses, num_terms)
    passes = _PASSES.get(way) or _choose(linear, primals, num_terms)
    if passes == "loop":
        return _forward(linear, primals, losses, num_terms, name)
    if passes == "unroll":
        # These gradients are separate and need not be stacked first.
        rows = _passes.unrolled(linear, primals, num_terms)
        parts = zip(*map(jax.tree.leaves, rows), strict=True)
        return _products.gramian_of_rows(*parts, num_terms=num_terms)
    grads = _passes.of_each_term(linear, primals, losses, num_terms, passes)
    return _products.gramian(*jax.tree.leaves(grads), num_terms=num_terms)


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
    """Returns the diagonal [K] of :func:`gramian_of`, from backward passes only.

    Forward derivatives are not needed, so no function is refused.
    """
    del name
    if shared is not None:
        linear, primals = _programs.restrict(linear, primals, shared)
    program = _cuts.find(linear, primals, _worth(way, num_terms, norms=True))
    products = [_cut_products.products_of(cut) for cut in program.cuts]

    def squared(grads: tuple[jax.Array, ...]) -> jax.Array:
        kept, cotangents = _split(program, grads)
        total = _products.squared_norms(*(leaf[None] for leaf in kept), num_terms=1)[0]
        for product, cotangent in zip(products, cotangents, strict=True):
            own, along = product(cotangent[None])
            total = total + jnp.sum(own * along)
        return total

    return _passes.of_each_term(
        program.rest, program.inputs, losses, num_terms, _PASSES.get(way), squared
    )


def _worth(
    way: Way | None, num_terms: int, *, norms: bool
) -> Callable[[Any], bool] | None:
    """Which parameters the passes stop at; none, if a way was asked for."""
    if way is not None:
        return None
    return functools.partial(_cut_products.worth, num_terms=num_terms, norms=norms)


def _split(program: _cuts.Program, found: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Splits what belongs to the inputs into that of parameters and that of cuts."""
    number = len(program.kept)
    return list(found[:number]), list(found[number:])


def _of_cuts(program: _cuts.Program, losses: Any, num_terms: int) -> Gramian:
    # The cotangents of all terms are needed at once.
    passes = _passes.choose(program.rest, program.inputs, num_terms, keeps_all=True)
    if passes == "unroll":
        rows = _passes.unrolled(program.rest, program.inputs, num_terms)
        kept, cotangents = _split(program, list(zip(*rows, strict=True)))
        total = _products.gramian_of_rows(*kept, num_terms=num_terms)
        cotangents = [jnp.stack(rows) for rows in cotangents]
    else:
        grads = _passes.of_each_term(
            program.rest, program.inputs, losses, num_terms, passes
        )
        kept, cotangents = _split(program, grads)
        total = _products.gramian(*kept, num_terms=num_terms)
    for cut, cotangent in zip(program.cuts, cotangents, strict=True):
        total = total + _cut_products.gramian(cut, cotangent)
    return total


def _fits(program: _cuts.Program, num_terms: int) -> bool:
    """Whether the K gradients of the parameters that are not cut may be kept."""
    if not program.cuts or num_terms <= _passes.MAX_UNROLLED:
        return bool(program.cuts)
    kept, _ = _split(program, program.inputs)
    cut = sum(math.prod(one.kind.sizes) // one.kind.sizes[1] for one in program.cuts)
    return num_terms * sum(leaf.size for leaf in kept) <= cut


def _forward(
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    losses: Any,
    num_terms: int,
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
        along = jax.tree.leaves(linear(*grads))
        flat = [jnp.asarray(leaf, dtype) for leaf in along]
        return flat[0] if flat[0].ndim else jnp.stack(flat)

    columns = _passes.of_each_term(linear, primals, losses, num_terms, "loop", column)
    return (columns + columns.T) / 2  # each product was computed twice


def _choose(
    linear: Callable[..., Any], primals: tuple[Any, ...], num_terms: int
) -> Chosen:
    passes = _passes.choose(linear, primals, num_terms)
    if passes not in ("loop", "batches"):
        return passes
    # Batches would be faster, but the gradients of many terms take much memory.
    if any(map(_spoils_forward, equations(linear, primals))):
        return "vmap" if _passes.batches_are_right() else "unroll"
    return "loop"


def _spoils_forward(eqn: Any) -> bool:
    # In a loop the products come from the model's forward derivatives. These must
    # exist, and must not be rounded to fewer digits than float32 has.
    dtypes = [getattr(var.aval, "dtype", jnp.float32) for var in eqn.outvars]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return eqn.primitive.name == "custom_lin" or any(
        jnp.finfo(dtype).bits < 32 for dtype in floats
    )
