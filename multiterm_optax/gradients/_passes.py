"""K backward passes through one linear function: unrolled, in a batch or in a loop."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxlib import version

from multiterm_optax import _terms
from multiterm_optax.gradients import _inputs
from multiterm_optax.gradients._outputs import equations, split_outputs

Passes = Literal["unroll", "vmap", "loop"]
PASSES = (None, "unroll", "vmap", "loop")

# For more terms an unrolled program takes long to compile, and a batch much memory.
MAX_UNROLLED = 16

# Older versions compute batched passes wrongly on CPU, those of ``jax.jacrev`` as well:
# behind normalisation, softmax or attention gradients can be wrong altogether.
RIGHT_JAXLIB = (0, 11, 0)


def choose(
    linear: Callable[..., Any],
    inputs: tuple[Any, ...],
    num_terms: int,
    *,
    keeps_all: bool = False,
) -> Passes:
    """The way that is fastest for a program on the machine and the jaxlib at hand.

    Accelerators batch the passes, unless a mesh spreads the program over devices, where
    a batch sends more. The other choices are for CPU. Up to 16 terms, products with
    batch dimensions, such as those of attention, are faster in a batch; all else is
    unrolled. Beyond, a loop needs the least memory, except that XLA:CPU is slow at
    convolutions in one, and that a caller who ``keeps_all`` the passes' inner results
    holds them in any case. Nothing is batched by a jaxlib that does so wrongly.

    @TABLE@
    """
    few = num_terms <= MAX_UNROLLED
    if few and jax.sharding.get_abstract_mesh().size > 1:
        return "unroll"
    if jax.default_backend() != "cpu":
        return "vmap"
    found = list(equations(linear, inputs))
    if few:
        faster = any(map(_is_batched, found))
        return "vmap" if faster and batches_are_right() else "unroll"
    if any(eqn.primitive.name == "conv_general_dilated" for eqn in found):
        return "vmap" if batches_are_right() else "unroll"
    return "vmap" if keeps_all and batches_are_right() else "loop"


def batches_are_right() -> bool:
    """Whether the jaxlib at hand computes a batch of passes correctly."""
    return jax.default_backend() != "cpu" or version.__version_info__ >= RIGHT_JAXLIB


def _is_batched(eqn: Any) -> bool:
    """Whether an operation is a matrix product with batch dimensions."""
    if eqn.primitive.name != "dot_general":
        return False
    _, (batch_dimensions, _) = eqn.params["dimension_numbers"]
    return bool(batch_dimensions)


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
