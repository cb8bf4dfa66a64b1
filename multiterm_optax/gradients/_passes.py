"""K backward passes through one linear function: unrolled, in a batch or in a loop."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from multiterm_optax import _terms
from multiterm_optax.gradients import _inputs
from multiterm_optax.gradients._outputs import equations, split_outputs

Passes = Literal["unroll", "vmap", "loop"]
PASSES = (None, "unroll", "vmap", "loop")

# For more terms an unrolled program takes long to compile.
MAX_UNROLLED = 16


def choose(
    linear: Callable[..., Any], primals: tuple[Any, ...], num_terms: int
) -> Passes:
    """Chooses a way that suits the number of terms, the program and the machine."""
    if num_terms <= MAX_UNROLLED:
        return "unroll"
    # A batch of passes uses an accelerator better than one pass, and XLA:CPU is slow at
    # convolutions in a loop. Otherwise a loop is as fast, needs the least memory, and
    # avoids a fault of jaxlib 0.10 (fixed in 0.12), whose fused batched products on CPU
    # give wrong gradients for attention under vmap.
    if jax.default_backend() != "cpu":
        return "vmap"
    names = {eqn.primitive.name for eqn in equations(linear, primals)}
    return "vmap" if "conv_general_dilated" in names else "loop"


def in_a_batch(linear: Callable[..., Any], inputs: tuple[Any, ...]) -> Passes:
    """``"vmap"``, except for programs that an older XLA:CPU gets wrong in a batch."""
    if jax.default_backend() != "cpu":
        return "vmap"
    for eqn in equations(linear, inputs):
        if eqn.primitive.name == "dot_general":
            _, (batched, _) = eqn.params["dimension_numbers"]
            if batched:
                return "loop"
    return "vmap"


def unrolled(
    linear: Callable[..., Any], primals: tuple[Any, ...], num_terms: int
) -> list[Any]:
    """The gradients of each term, from a pass through what it depends on."""
    found = []
    for one_loss in split_outputs(linear, primals, num_terms):
        cotangent = jnp.ones_like(jax.eval_shape(one_loss, *primals))
        found.append(jax.linear_transpose(one_loss, *primals)(cotangent))
    return found


def of_each_term(
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    losses: Any,
    num_terms: int,
    passes: Passes | None,
    function: Callable[[Any], Any] = lambda grads: grads,
) -> Any:
    """The results of ``function`` for each term's gradients, stacked."""
    passes = passes or choose(linear, primals, num_terms)
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
