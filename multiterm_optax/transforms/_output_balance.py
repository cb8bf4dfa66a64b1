"""EnCodec's balancer: each term gets its share of one gradient norm."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _averages, _checks, _products, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._terms import accumulator_dtype
from multiterm_optax._typing import Norms, Scalar


class OutputBalanceState(NamedTuple):
    """State of :func:`output_balance`.

    Attributes:
      norms: Bias-corrected moving averages of the gradients' norms [K].
      seen: Number of norms seen so far of each term, int32 [K].
    """

    norms: jax.Array
    seen: jax.Array


def output_balance(
    num_terms: int,
    total_norm: Scalar = 1.0,
    weights: Any = None,
    decay: Scalar = 0.999,
    per_row: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives each term's gradient its share of one norm (EnCodec's balancer).

    With the bias-corrected moving average :math:`n_i` of :math:`\lVert g_i \rVert`,

    .. math::

      g_i \leftarrow R \, \frac{u_i}{\sum_j u_j} \, \frac{g_i}{n_i} .

    It is made for gradients with respect to the model's *output*, which one backward
    pass then carries to the parameters, but also works on gradients of parameters.

    Args:
      num_terms: K, the number of terms.
      total_norm: :math:`R`, not negative.
      weights: The shares :math:`u`, [K], not negative. ``None``: all 1.
      decay: The decay rate of the averages, in [0, 1).
      per_row: Whether a norm is the mean, over the rows of the batch, of each row's
        norm. The axis of the rows follows the term axis: every leaf is [K, rows, ...].

    Returns:
      A transformation of updates, every leaf [K, \*p], that keeps their shapes and
      dtypes. ``update`` takes ``present``, K booleans: the shares are those of the
      present terms. A norm that is not finite leaves its average as it was.

    Raises:
      ValueError: A hyperparameter is out of range, or an axis is missing.

    Source:
      Défossez, Copet, Synnaeve and Adi, "High Fidelity Neural Audio Compression", TMLR
      2023, 3.4, with the bias correction of the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import output_balance
      >>> tx = output_balance(num_terms=2, weights=[3.0, 1.0])
      >>> along_output = jnp.array([[3.0, 4.0], [0.0, 1000.0]])
      >>> updates, _ = tx.update(along_output, tx.init(jnp.zeros(2)))
      >>> [[round(float(x), 4) for x in row] for row in updates]
      [[0.45, 0.6], [0.0, 0.25]]
    """
    name = "output_balance"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.non_negative(total_norm, "total_norm", name)
    _checks.decay(decay, "decay", name)
    _checks.one_of(per_row, "per_row", name, (False, True))
    if weights is not None:
        _checks.vector(weights, "weights", name, num_terms)

    def init_fn(params: optax.Params) -> OutputBalanceState:
        del params
        return OutputBalanceState(
            norms=jnp.zeros((num_terms,), jnp.result_type(float)),
            seen=jnp.zeros((num_terms,), jnp.int32),
        )

    def update_fn(
        step: Step, state: OutputBalanceState
    ) -> tuple[optax.Updates, OutputBalanceState]:
        leaves, old = jax.tree.leaves(step.updates), state.norms
        if per_row:
            current = _mean_over_rows(leaves, num_terms, name)
        else:
            current = jnp.sqrt(_products.squared_norms(*leaves, num_terms=num_terms))
        current = jax.lax.stop_gradient(current).astype(old.dtype)
        known = jnp.isfinite(current)
        if step.present is not None:
            known = known & step.present
        seen = jnp.asarray(optax.safe_increment(state.seen))
        moved = old + _averages.newest_share(decay, seen) * (current - old)
        norms = jnp.where(known, moved, old).astype(old.dtype)

        shares = jnp.ones_like(norms)
        if weights is not None:
            shares = _checks.vector(weights, "weights", name, num_terms)
        shares = _terms.only_present(step.present, shares)
        shares = _terms.quotient(shares, jnp.sum(shares))
        factors = _terms.quotient(total_norm * shares, norms)
        scaled = jax.tree.map(partial(_terms.scale, factors), step.updates)
        return scaled, OutputBalanceState(norms, jnp.where(known, seen, state.seen))

    return _stages.stage(name, num_terms, init_fn, update_fn)


def _mean_over_rows(leaves: list[jax.Array], num_terms: int, name: str) -> Norms:
    """The mean norm of the rows; every leaf has the same number of them."""
    rows = {leaf.shape[1] if leaf.ndim > 1 else None for leaf in leaves}
    if None in rows or len(rows) > 1:
        raise ValueError(
            f"{name}: with per_row every leaf must be [K, rows, ...] with the same "
            f"number of rows, found shapes {[leaf.shape for leaf in leaves]}."
        )
    squares = jnp.zeros((num_terms, *rows), accumulator_dtype(*leaves))
    for leaf in leaves:
        wide = leaf.astype(squares.dtype)
        squares = squares + jnp.sum(wide * wide, axis=tuple(range(2, leaf.ndim)))
    return jnp.mean(jnp.sqrt(squares), axis=tuple(range(1, squares.ndim)))
