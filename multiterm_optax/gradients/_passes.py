"""K backward passes through a linear function: unrolled, in batches or in a loop."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.lib
import jax.numpy as jnp

from multiterm_optax import _terms
from multiterm_optax.gradients import _inputs
from multiterm_optax.gradients._outputs import are_separate, split_outputs
from multiterm_optax.gradients._programs import equations

Passes = Literal["unroll", "vmap", "loop"]
PASSES = (None, "unroll", "vmap", "loop")

# What may be chosen by default: a loop over batches, too.
Chosen = Literal["unroll", "vmap", "batches", "loop"]

# The most passes of a batch in a loop.
_BATCH = 8

# For more terms an unrolled program takes long to compile, and a batch much memory.
MAX_UNROLLED = 16

# Fewer passes through a scan are not faster in a batch.
_MIN_BATCHED_SCAN = 8

# Older versions compute batched passes wrongly on CPU, those of ``jax.jacrev`` as well:
# behind normalisation, softmax or attention gradients can be wrong altogether.
RIGHT_JAXLIB = (0, 11)


def choose(
    linear: Callable[..., Any],
    inputs: tuple[Any, ...],
    num_terms: int,
    *,
    keeps_all: bool = False,
) -> Chosen:
    """The way that is fastest for a program on the machine and the jaxlib at hand.

    Terms that have hardly an operation in common, such as heads seen from shared
    features, are unrolled wherever and however many they are: in a batch or a loop each
    pass would go through the operations of all terms. Else accelerators batch the
    passes, unless a mesh spreads the program over devices, where a batch sends more.
    The other choices are for CPU. Up to 16 terms, products with batch dimensions, as in
    attention, are faster in a batch, and so are 8 and more passes through a scan; all
    else is unrolled. Beyond, these run in a loop over batches, and all else in a loop
    over passes, which needs the least memory. But XLA:CPU is slow at convolutions in a
    loop, and a caller who ``keeps_all`` inner results of the passes holds them in any
    case. Where the jaxlib gets batches wrong, there are none.

    Times of a batch over those of unrolled passes, on two cores (JAX 0.10 / 0.12), and
    its temporaries over theirs (0.12), from examples/benchmarks/passes.py:

    ==================  ===========  ===========  ===========  ===========
    program             time, K = 2  K = 10       memory, K=2  K = 10
    ==================  ===========  ===========  ===========  ===========
    dense, small        0.93 / 0.93  0.67 / 0.71  1.6          1.7
    dense, 3 million    1.01 / 1.44  0.83 / 0.99  1.0          0.6
    convolutions        0.99 / 0.93  1.30 / 1.15  1.6          1.6
    scan over layers    0.87 / 1.14  0.75 / 0.76  0.8          0.9
    scan over time      0.92 / 0.89  0.82 / 0.72  1.0          1.5
    attention           0.85 / 0.79  0.82 / 0.82  1.1          1.4
    experts, remat      0.86 / 0.87  0.89 / 0.64  0.7          0.5
    ==================  ===========  ===========  ===========  ===========

    With 32 terms a batch took 0.5 to 1.2 times as long as a loop, and 3 to 22 times its
    temporaries; batches of 8 took 0.55 (experts) to 0.72 (scan over time, attention)
    and 1.04 (scan over layers) times as long, but 1.3 times with dense layers, and 2 to
    5 times the temporaries. On an H200 a batch took 0.50 to 0.94 of the unrolled time,
    K = 2 to 10.
    """
    few = num_terms <= MAX_UNROLLED
    if few and jax.sharding.get_abstract_mesh().size > 1:
        return "unroll"
    if are_separate(linear, inputs, num_terms):
        return "unroll"
    if jax.default_backend() != "cpu":
        return "vmap"
    found = list(equations(linear, inputs))
    names = {eqn.primitive.name for eqn in found}
    right, convolves = batches_are_right(), "conv_general_dilated" in names
    attends, scans = any(map(_is_batched, found)), "scan" in names
    if few:
        faster = attends or (scans and num_terms >= _MIN_BATCHED_SCAN)
        return "vmap" if right and faster and not convolves else "unroll"
    if convolves:
        return "vmap" if right else "unroll"
    if right and (attends or (scans and not keeps_all)):
        return "batches"
    return "vmap" if right and keeps_all else "loop"


def batches_are_right() -> bool:
    """Whether the jaxlib at hand computes a batch of passes correctly."""
    if jax.default_backend() != "cpu":
        return True
    found: str = jax.lib.__version__  # pyright: ignore[reportPrivateImportUsage]
    return tuple(map(int, found.split(".")[:2])) >= RIGHT_JAXLIB


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
    passes: Chosen | None,
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
    if passes == "loop":
        return jax.lax.map(one_pass, hots)
    # Batches of one size, but for the last.
    size = -(-num_terms // -(-num_terms // _BATCH))
    return jax.lax.map(one_pass, hots, batch_size=size)
