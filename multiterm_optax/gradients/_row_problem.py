# Longer than most: rows have owners and weights, and may be absent.
"""Losses, gramian and weighted gradients of terms that own their rows of a batch.

Every row goes through the model alone, under ``jax.vmap``, so that no row can touch
the loss of another. One backward pass gives each row its cotangents at the cuts, and
the gradients of what cannot be cut. They are all that the gramian of the rows and any
weighted gradient need: no second pass follows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _products, _shardings, _terms
from multiterm_optax._typing import Gramian, Norms, Weights
from multiterm_optax.gradients import _cut_products, _cuts, _inputs, _rows


class RowProblem(NamedTuple):
    """What a step needs.

    Attributes:
      losses: The losses of the terms [K].
      gramian: Their gramian [K, K]. With ``shared``, of the leaves that are true there.
      squared_norms: Its diagonal [K].
      pullback: From weights [K] to the gradient of the weighted sum.
    """

    losses: Array
    gramian: Callable[[list[bool] | None], Gramian]
    squared_norms: Callable[[list[bool] | None], Norms]
    pullback: Callable[[Weights], Any]


def row_problem(
    row_losses_fn: Callable[..., Any],
    num_terms: int,
    present: Bool[Array, " K"] | None,
    name: str,
    params: Any,
    rows: Any,
    *args: Any,
    row_terms: Any = None,
    row_weights: Any = None,
    **kwargs: Any,
) -> RowProblem:
    """Differentiates each row's loss by itself."""
    _inputs.check_parameters(params, "params", name)
    chosen, owners, counted = rows, None, None
    every_row_a_term = row_terms is None and row_weights is None and present is None
    row_terms = jnp.arange(num_terms) if row_terms is None else row_terms
    row_terms = _rows.integers(row_terms, name)
    num_rows = _rows.check(rows, row_terms, name)
    _check_axes((params, rows), name)
    if not every_row_a_term:
        owners = _owners(row_terms, row_weights, num_terms, present, name)
        counted = owners.counted
        # A row that does not count may hold anything, even NaN: another is computed
        # instead.
        index = jnp.where(counted, jnp.arange(num_rows), jnp.argmax(counted))
        chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], rows)

    leaves, structure = jax.tree.flatten(params)
    cuts: list[_cuts.Cut] = []
    kept: list[int] = []

    def one_row(row: Any) -> tuple[Any, ...]:
        def loss_fn(params: Any) -> Array:
            alone = jax.tree.map(lambda leaf: leaf[None], row)
            losses = row_losses_fn(params, alone, *args, **kwargs)
            _rows.check_losses(losses, 1, name)
            return losses[0]

        loss, linear = jax.linearize(loss_fn, params)
        program = _cuts.find(linear, (params,), _cut_products.worth_by_row)
        transposed = jax.linear_transpose(program.rest, *program.inputs)
        found = transposed(jnp.ones_like(loss))
        # What is left of this trace is returned; the rest is the same for all rows.
        cuts[:] = [cut._replace(constant=None) for cut in program.cuts]
        kept[:] = program.kept
        number = len(kept)
        constants = [cut.constant for cut in program.cuts]
        return loss, found[:number], found[number:], constants

    losses, grads, cotangents, constants = jax.vmap(one_row)(chosen)
    losses, grads, cotangents = jax.tree.map(
        lambda leaf: _terms.only_present(counted, leaf), (losses, grads, cotangents)
    )

    def over_leaves(whole: Callable[..., Any], one_cut: Callable[..., Any]) -> Any:
        def total(shared: list[bool] | None) -> Any:
            counts = [True] * len(leaves) if shared is None else shared
            found = [one for leaf, one in zip(kept, grads, strict=True) if counts[leaf]]
            total = whole(*found, num_terms=num_rows)
            for cut, *arrays in zip(cuts, constants, cotangents, strict=True):
                if counts[cut.leaf]:
                    total = total + one_cut(cut, *arrays)
            return total

        return total

    of_rows = over_leaves(_products.gramian, _cut_products.gramian_by_row)

    def gramian(shared: list[bool] | None) -> Gramian:
        total = of_rows(shared)
        return total if owners is None else owners.sum(owners.sum(total).T)

    def squared_norms(shared: list[bool] | None) -> Norms:
        if owners is not None:
            return jnp.diagonal(gramian(shared))
        of_rows = _cut_products.squared_norms_by_row
        return over_leaves(_products.squared_norms, of_rows)(shared)

    def pullback(weights: Weights) -> Any:
        factors = weights if owners is None else owners.spread(weights)
        found: list[Any] = [None] * len(leaves)
        for leaf, grad in zip(kept, grads, strict=True):
            found[leaf] = _terms.weighted_sum(factors, grad)
        for cut, constant, cotangent in zip(cuts, constants, cotangents, strict=True):
            found[cut.leaf] = _of_cut(
                cut, constant, _terms.scale(factors, cotangent), leaves[cut.leaf]
            )
        if owners is not None:  # without any row that counts, all stay as they came
            some = jnp.any(owners.counted)
            found = [jnp.where(some, leaf, 0) for leaf in found]
        return structure.unflatten(found)

    if owners is not None:
        # A number that names no term is a mistake, which must not pass silently.
        mistaken = jnp.any(row_terms >= num_terms)
        losses = jnp.where(mistaken, jnp.nan, owners.sum(losses))
    return RowProblem(losses, gramian, squared_norms, pullback)


def _check_axes(tree: Any, name: str) -> None:
    """Refuses arrays whose products would each need a sharding of their own."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and any(_shardings.spec(leaf)):
            raise ValueError(
                f"{name}: gramian='rows' takes arrays on automatic mesh axes only, "
                f"found {jax.typeof(leaf)}."
            )


def _of_cut(cut: _cuts.Cut, constants: Any, cotangents: Array, leaf: Any) -> Array:
    """The gradient of one cut's parameter, from all rows together."""

    def outputs(leaf: Array) -> Array:
        return jax.vmap(lambda constant: cut.apply(constant, leaf))(constants)

    (grad,) = jax.linear_transpose(outputs, leaf)(cotangents)
    return grad


class _Owners(NamedTuple):
    """Sums over the rows of each term; what is not finite stays in its own term.

    Attributes:
      num_terms: K.
      counted: Which rows count [B].
      terms: The terms that own them [B], or K for none.
      factors: The factor of each row's loss in its term's loss [B].
    """

    num_terms: int
    counted: Bool[Array, " B"]
    terms: Array
    factors: Array

    def sum(self, values: Array) -> Array:
        """From [B, ...] to [K, ...]."""
        factors = self.factors.reshape(-1, *(1,) * (values.ndim - 1))
        zeros = jnp.zeros((self.num_terms, *values.shape[1:]), values.dtype)
        scaled = (factors * values).astype(values.dtype)
        return zeros.at[self.terms].add(scaled, mode="drop")

    def spread(self, weights: Weights) -> Array:
        """From weights [K] of the terms to those of the rows, [B]."""
        given = weights.at[self.terms].get(mode="fill", fill_value=0)
        return self.factors * given


def _owners(
    row_terms: Array,
    row_weights: Any,
    num_terms: int,
    present: Bool[Array, " K"] | None,
    name: str,
) -> _Owners:
    if row_weights is not None:
        row_weights = _rows.row_weights(row_weights, len(row_terms), name)
    factors = _rows.normalized(row_terms, row_weights, num_terms, "mean")
    counted = (row_terms >= 0) & (factors != 0)
    if present is not None:
        counted = counted & present[jnp.clip(row_terms, 0, num_terms - 1)]
    terms = jnp.where(counted, row_terms, num_terms)
    return _Owners(num_terms, counted, terms, jnp.where(counted, factors, 0))
