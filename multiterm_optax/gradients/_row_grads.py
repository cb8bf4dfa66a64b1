# Longer than most: it decides which rows each pass takes.
"""Per-term gradients of terms that own their rows of a batch, each row used once."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from multiterm_optax import _checks
from multiterm_optax.gradients import _inputs, _passes, _rows
from multiterm_optax.gradients._passes import Passes


class _Plan(NamedTuple):
    """The C rows of each of N passes; the first K passes are one for each term."""

    rows: Int[Array, "N C"]
    weights: Float[Array, "N C"]
    used: Bool[Array, " N"]
    terms: Int[Array, " N"]


def value_and_row_grads(
    row_losses_fn: Callable[..., Any],
    num_terms: int,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    capacity: int | None = None,
    passes: Passes | None = None,
) -> Callable[..., tuple[Any, Any]]:
    r"""Losses and their gradients where each term has its own rows of the batch.

    It is for class losses, losses of several sources, or labels that only some rows
    have. With :math:`\ell_r(\theta)` the loss of row r, :math:`\omega_r` its weight and
    :math:`R_i` the rows of term i,

    .. math::

      L_i = \frac{\sum_{r \in R_i} \omega_r \ell_r}{\sum_{r \in R_i} \omega_r}, \qquad
      g_i = \nabla_\theta L_i .

    Each row is used once: K gradients cost at most twice as much as one gradient of the
    batch. A term without rows has loss 0 and gradient 0.

    Args:
      row_losses_fn: Function ``row_losses_fn(params, rows, *args, **kwargs)`` that
        returns one loss for each row, [n], for any number n of rows. A loss must not
        depend on other rows, as it does with batch normalisation.
      num_terms: K, the number of terms.
      reduction: ``"mean"``: as above. ``"sum"``: without the denominator.
      capacity: The most rows that a term can have, if the sampler guarantees a limit:
        there are K passes of ``capacity`` rows, and a term with more rows gets the loss
        and the gradient NaN. ``None``: 2K - 1 passes of ``ceil(B / K)`` rows.
      passes: ``"unroll"``, ``"vmap"`` or ``"loop"``, as in
        :func:`value_and_term_grads`. ``None``: ``"unroll"`` up to 16 terms, else
        ``"vmap"``.

    Returns:
      A function ``fn(params, rows, row_terms, *args, row_weights=None, **kwargs)``
      that returns ``(losses, grads)``: an array [K], and every leaf [K, \*p] in the
      parameter's dtype. ``rows`` is a tree of arrays [B, ...]. ``row_terms`` [B] says
      which term owns each row: none for a negative number; with K or more every loss is
      NaN. ``row_weights`` [B] are not negative; a row of weight 0 is left out. ``args``
      and ``kwargs`` are passed on as they are.

    Raises:
      TypeError: ``row_terms`` are not integers, or a parameter or loss is not real
        floating point.
      ValueError: Shapes do not fit, or an argument is out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import value_and_row_grads
      >>> def row_losses(w, rows):
      ...     return 0.5 * (rows["x"] * w - rows["y"]) ** 2
      >>> rows = {"x": jnp.array([1.0, 2.0, 3.0]), "y": jnp.array([0.0, 1.0, 1.0])}
      >>> source = jnp.array([0, 1, 0])  # of three terms, the last has no row
      >>> fn = jax.jit(value_and_row_grads(row_losses, num_terms=3))
      >>> losses, grads = fn(jnp.array(1.0), rows, source)
      >>> losses.tolist(), grads.tolist()
      ([1.25, 0.5, 0.0], [3.5, 2.0, 0.0])
    """
    name = "value_and_row_grads"
    _checks.function(row_losses_fn, "row_losses_fn", name)
    num_terms = _checks.num_terms(num_terms, name)
    _checks.one_of(reduction, "reduction", name, ("mean", "sum"))
    _checks.one_of(passes, "passes", name, _passes.PASSES)
    if capacity is not None and (_checks.as_int(capacity) or 0) < 1:
        raise ValueError(
            f"{name}: capacity must be None or an int of at least 1, found "
            f"{capacity!r}."
        )

    @functools.wraps(row_losses_fn)
    def fn(
        params: Any,
        rows: Any,
        row_terms: Any,
        *args: Any,
        row_weights: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        row_terms = _rows.integers(row_terms, name)
        num_rows = _rows.check(rows, row_terms, name)
        if row_weights is not None:
            row_weights = _rows.row_weights(row_weights, num_rows, name)
        _inputs.check_parameters(params, "params", name)
        size = min(capacity or -(-num_rows // num_terms), num_rows)
        weights = _rows.normalized(row_terms, row_weights, num_terms, reduction)
        plan = _plan(row_terms, weights, num_terms, size, promised=capacity is not None)

        def one_pass(
            index: Array, weights: Array, used: Array
        ) -> tuple[jax.Array, Any]:
            chosen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], rows)

            def loss(params: Any) -> jax.Array:
                losses = row_losses_fn(params, chosen, *args, **kwargs)
                _rows.check_losses(losses, size, name)
                return jnp.sum(losses * weights.astype(losses.dtype))

            value, grads = jax.value_and_grad(loss)(params)
            # A pass without rows of its own has run on another term's. Its results are
            # discarded, even if they are NaN.
            return jax.tree.map(lambda x: jnp.where(used, x, 0), (value, grads))

        leaves = jax.tree.leaves((params, rows, row_terms))
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            # Unrolled passes are then traced once only. Outside of any jit this would
            # compile the passes again in each call.
            one_pass = jax.jit(one_pass)
        inputs = (plan.rows, plan.weights, plan.used)
        few = num_terms <= _passes.MAX_UNROLLED
        if passes == "unroll" or (passes is None and few):
            found = [
                one_pass(*(one[i] for one in inputs)) for i in range(len(plan.terms))
            ]
            result = jax.tree.map(lambda *x: jnp.stack(x[:num_terms]), *found)
            for i, extra in enumerate(found[num_terms:], num_terms):
                result = _add(result, extra, plan.terms[i])
            return result
        if passes == "loop":
            stacked = jax.lax.map(lambda x: one_pass(*x), inputs)
        else:
            stacked = jax.vmap(one_pass)(*inputs)
        return jax.tree.map(
            lambda x: x[:num_terms].at[plan.terms[num_terms:]].add(x[num_terms:]),
            stacked,
        )

    return fn


def _plan(
    row_terms: Array, weights: Array, num_terms: int, size: int, promised: bool
) -> _Plan:
    """Sorts the rows by term and cuts them into passes of ``size`` rows."""
    total = row_terms.shape[0]
    owned = (row_terms >= 0) & (weights != 0)
    # A number that names no term is a mistake, which must not pass silently.
    weights = jnp.where(jnp.any(row_terms >= num_terms), jnp.nan, weights)
    keys = jnp.where(owned, row_terms, num_terms)
    order = jnp.argsort(keys, stable=True)
    counts = jnp.sum(keys[None, :] == jnp.arange(num_terms)[:, None], axis=1)
    starts = jnp.cumsum(counts) - counts
    terms, parts = jnp.arange(num_terms), jnp.zeros(num_terms, counts.dtype)
    used = counts > 0
    if promised:
        over = (counts > size)[jnp.clip(row_terms, 0, num_terms - 1)]
        weights = jnp.where(over, jnp.nan, weights)
    else:
        # Passes beyond each term's first, at most this many for all terms together.
        extras = jnp.arange((total - 1) // size)
        more = jnp.maximum(-(-counts // size) - 1, 0)
        ends = jnp.cumsum(more)
        owner = jnp.searchsorted(ends, extras, side="right")
        owner = jnp.minimum(owner, num_terms - 1)
        terms = jnp.concatenate([terms, owner])
        parts = jnp.concatenate([parts, 1 + extras - (ends - more)[owner]])
        used = jnp.concatenate([used, extras < ends[-1]])
    first = (starts[terms] + parts * size)[:, None]
    left = (counts[terms] - parts * size)[:, None]
    # Unused places repeat the pass's first row, with weight 0, so that a row that is
    # not finite does not affect another term.
    column = jnp.arange(size)[None, :]
    filled = (column < left) & used[:, None]
    place = jnp.where(filled, first + column, first)
    index = order[jnp.clip(place, 0, total - 1)]
    return _Plan(index, jnp.where(filled, weights[index], 0), used, terms)


def _add(stacked: Any, extra: Any, term: Array) -> Any:
    def one_leaf(leaf: Array, added: Array) -> Array:
        old = jax.lax.dynamic_index_in_dim(leaf, term, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(leaf, old + added, term, 0)

    return jax.tree.map(one_leaf, stacked, extra)
