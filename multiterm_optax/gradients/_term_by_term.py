"""K gradients of one parameter after the other, used up term by term.

Where a parameter is the matrix of a dense layer, its K gradients are products of the
layer's inputs with K cotangents, which are small. The norms of the gradients follow
from these, too, so that one gradient at a time is made, used and dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _terms
from multiterm_optax._typing import Leaf, Norms, TermLeaf
from multiterm_optax.gradients import _cut_products, _cuts, _passes


class Made(NamedTuple):
    """The K gradients of one parameter.

    Attributes:
      squared_norms: Their squared norms [K].
      cotangents: What they are made from, [K, ...].
      gradient: From a term's cotangents to its gradient [*p]; None: they are the same.
    """

    squared_norms: Norms
    cotangents: TermLeaf
    gradient: Callable[[jax.Array], Leaf] | None


def of_each_parameter(
    linear: Callable[..., Any], params: Any, losses: Any, num_terms: int
) -> list[Made]:
    """The gradients for each leaf, in the order of the leaves."""
    program = _cuts.find(linear, (params,), partial(_worth, num_terms=num_terms))
    # The cotangents of all terms are needed at once.
    passes = _passes.choose(
        program.rest, program.inputs, num_terms, keeps_all=bool(program.cuts)
    )
    found = _passes.of_each_term(
        program.rest, program.inputs, losses, num_terms, passes
    )
    made: dict[int, Made] = {}
    number = len(program.kept)
    for leaf, grads in zip(program.kept, found[:number], strict=True):
        made[leaf] = Made(_terms.squared_norms(grads), grads, None)
    leaves = jax.tree.leaves(params)
    for cut, cotangents in zip(program.cuts, found[number:], strict=True):
        own, along = _cut_products.products_of(cut)(cotangents)
        squared = jnp.maximum(jnp.sum(own * along, axis=(1, 2, 3)), 0)
        gradient = partial(_gradient, cut, leaves[cut.leaf])
        made[cut.leaf] = Made(squared, cotangents, gradient)
    return [made[i] for i in range(len(leaves))]


def _gradient(cut: _cuts.Cut, param: Any, cotangent: jax.Array) -> Leaf:
    product = partial(cut.apply, cut.constant)
    (gradient,) = jax.linear_transpose(product, param)(cotangent)
    return gradient


def _worth(cut: _cuts.Cut, num_terms: int) -> bool:
    """Whether the norms are cheap without the gradients, and these fast in a loop."""
    if cut.kind.table or not _cut_products.worth(cut, num_terms, norms=True):
        return False
    # A convolution has a part for each offset. XLA:CPU is slow at those in a loop.
    return len(jax.eval_shape(cut.kind.parts, cut.constant)) == 1
