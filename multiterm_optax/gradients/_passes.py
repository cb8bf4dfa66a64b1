"""K backward passes through one linear function: apart, in a batch or in a loop."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from multiterm_optax import _terms
from multiterm_optax.gradients import _inputs
from multiterm_optax.gradients._outputs import equations, split_outputs

Passes = Literal["unroll", "vmap", "loop"]
PASSES = (None, "unroll", "vmap", "loop")

# Beyond this many terms an unrolled program takes long to compile.
MAX_UNROLLED = 16


def choose(
    linear: Callable[..., Any], primals: tuple[Any, ...], num_terms: int
) -> Passes:
    """The way that suits the number of terms, the program and the machine."""
    if num_terms <= MAX_UNROLLED:
        return "unroll"
    # Accelerators fill up with a batch of passes rather than with one; and XLA:CPU has
    # no fast convolution inside a loop. Else a loop is as fast and needs the least
    # memory, and does not meet the fault of jaxlib 0.10 (gone in 0.12), whose fused
    # batched products on CPU give wrong gradients for attention under vmap.
    if jax.default_backend() != "cpu":
        return "vmap"
    names = {eqn.primitive.name for eqn in equations(linear, primals)}
    return "vmap" if "conv_general_dilated" in names else "loop"


def unrolled(
    linear: Callable[..., Any], primals: tuple[Any, ...], num_terms: int
) -> list[Any]:
    """The gradients of each term, by a pass through what it depends on."""
    found = []
    for one_loss in split_outputs(linear, primals, num_terms):
        cotangent = jnp.ones_like(jax.eval_shape(one_loss, *primals))
        found.append(jax.linear_transpose(one_loss, *primals)(cotangent))
    return found


def of_each_term(
    function: Callable[[Any], Any],
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    losses: Any,
    num_terms: int,
    passes: Passes,
) -> Any:
    """What ``function`` makes of each term's gradients, stacked."""
    if passes == "unroll":
        found = map(function, unrolled(linear, primals, num_terms))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    pullback = jax.linear_transpose(linear, *primals)

    def one_pass(one_hot: jax.Array) -> Any:
        return function(pullback(_inputs.cotangents(losses, one_hot)))

    hots = jnp.eye(num_terms, dtype=_terms.accumulator_dtype(*jax.tree.leaves(losses)))
    if passes == "vmap":
        return jax.vmap(one_pass)(hots)
    return jax.lax.map(one_pass, hots)
