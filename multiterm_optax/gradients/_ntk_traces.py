"""Traces of the neural tangent kernel, from the residuals' Jacobians."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr

from multiterm_optax import _checks, _terms
from multiterm_optax.gradients import _inputs


def ntk_traces(
    residuals_fn: Callable[..., Any], *, batch_size: int | None = None
) -> Callable[..., jax.Array]:
    r"""Mean squared length of the gradients of each term's residuals.

    .. math::

      k_i = \frac{1}{n_i} \sum_{b=1}^{n_i} \Bigl\lVert
      \frac{\partial r_{ib}(\theta)}{\partial \theta} \Bigr\rVert^2 ,

    the trace of the term's neural tangent kernel over its number of rows.

    Args:
      residuals_fn: ``residuals_fn(params, *args)`` returns a pytree of K arrays: the
        residuals of each term, whose squares its loss averages. Each element of an
        array counts as a row, of which a term needs at least one.
      batch_size: How many backward passes run at once, and so how many gradients are
        held. ``None``: those of all rows of a term.

    Returns:
      A function with the arguments of ``residuals_fn`` that returns the traces [K], in
      the order of the residuals' leaves, in at least float32. It takes one backward
      pass for each row: a few hundred rows of a batch will do.

    Raises:
      TypeError: ``residuals_fn`` is not a function, or parameters or residuals are not
        real floating point.
      ValueError: There is no residual, or ``batch_size`` is below 1.

    Source:
      Wang, Yu and Perdikaris, "When and Why PINNs Fail to Train: A Neural Tangent
      Kernel Perspective", JCP 2022; the mean over the rows as in jaxpi.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import ntk_traces
      >>> def residuals_fn(w, x):
      ...     return {"equation": x @ w, "boundary": 3 * w[0]}
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> traces = ntk_traces(residuals_fn)(jnp.zeros(2), x)  # boundary, equation
      >>> [round(float(trace), 4) for trace in traces]
      [9.0, 1.3333]
    """
    name = "ntk_traces"
    _checks.function(residuals_fn, "residuals_fn", name)
    if batch_size is not None:
        batch_size = _checks.static_int(batch_size, "batch_size", name, low=1)

    def traces(params: Any, *args: Any, **kwargs: Any) -> jax.Array:
        _inputs.check_parameters(params, "params", name)

        def residuals_of(params: Any) -> Any:
            return residuals_fn(params, *args, **kwargs)

        residuals, pullback = jax.vjp(residuals_of, params)
        leaves, structure = jax.tree.flatten(residuals)
        _check(residuals, name)
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]

        def one_row(term: int, row: jax.Array) -> jax.Array:
            size = leaves[term].size
            hot = (jnp.arange(size) == row).astype(leaves[term].dtype)
            cotangent = [*zeros]
            cotangent[term] = hot.reshape(leaves[term].shape)
            (grads,) = pullback(structure.unflatten(cotangent))
            squares = [_squares(grad) for grad in jax.tree.leaves(grads)]
            return sum(squares, start=jnp.zeros([], jnp.result_type(float)))

        def trace(term: int) -> jax.Array:
            rows = jnp.arange(leaves[term].size)
            if batch_size is None:
                return jnp.mean(jax.vmap(lambda row: one_row(term, row))(rows))
            found = jax.lax.map(
                lambda row: one_row(term, row), rows, batch_size=batch_size
            )
            return jnp.mean(found)

        return jnp.stack([trace(term) for term in range(len(leaves))])

    return traces


def _squares(grad: jax.Array) -> jax.Array:
    wide = grad.astype(_terms.accumulator_dtype(grad))
    return jnp.sum(wide * wide).astype(jnp.result_type(float))


def _check(residuals: Any, name: str) -> None:
    """Refuses residuals that are not K arrays of real numbers, none of them empty."""
    leaves = jax.tree_util.tree_leaves_with_path(residuals)
    if not leaves:
        raise ValueError(
            f"{name}: residuals_fn must return the residuals of at least one term, "
            "found none."
        )
    for path, leaf in leaves:
        where = f"residuals{keystr(path)}"
        _checks.floating(leaf, where, name)
        if jnp.size(leaf) == 0:
            raise ValueError(
                f"{name}: {where} must have at least one row, found shape "
                f"{jnp.shape(leaf)}."
            )
