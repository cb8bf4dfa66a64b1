"""Tries out whether each row's loss is that of the row alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from multiterm_optax import _checks
from multiterm_optax.gradients import _rows


def check_row_losses(
    row_losses_fn: Callable[..., Any],
    params: Any,
    rows: Any,
    *args: Any,
    rtol: float = 1e-3,
    **kwargs: Any,
) -> None:
    """Refuses a function whose loss of a row depends on the other rows.

    :func:`value_and_row_grads` and ``value_and_weighted_grad(..., gramian="rows")``
    take the rows of a batch apart. Batch normalisation in training mode, losses of
    pairs, or one random key for a whole batch then give different losses. This
    compares, once and outside of ``jax.jit``, each row's loss in the batch with its
    loss alone.

    Args:
      row_losses_fn: As :func:`value_and_row_grads` takes it.
      params: The parameters.
      rows: A batch, a tree of arrays [B, ...].
      *args: Passed on.
      rtol: The largest difference, relative to the row's loss or, if that is larger,
        to the mean over the rows of the losses' absolute values.
      **kwargs: Passed on.

    Raises:
      ValueError: A loss differs, or shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import check_row_losses
      >>> x = jnp.array([0.0, 1.0, 5.0])
      >>> check_row_losses(lambda w, x: (w * x - 1) ** 2, 2.0, x)
      >>> check_row_losses(lambda w, x: (w * (x - x.mean())) ** 2, 2.0, x)
      Traceback (most recent call last):
        ...
      ValueError: check_row_losses: each row's loss must not depend on other rows, ...
    """
    name = "check_row_losses"
    _checks.function(row_losses_fn, "row_losses_fn", name)
    leaves = jax.tree.leaves(rows)
    num_rows = jnp.shape(leaves[0])[0] if leaves and jnp.ndim(leaves[0]) else 0
    _rows.check(rows, jnp.arange(num_rows), name)

    def losses_of(rows: Any) -> Any:
        losses = row_losses_fn(params, rows, *args, **kwargs)
        _rows.check_losses(losses, len(jax.tree.leaves(rows)[0]), name)
        return losses

    def alone(row: Any) -> Any:
        return losses_of(jax.tree.map(lambda leaf: leaf[None], row))[0]

    rows = jax.tree.map(jnp.asarray, rows)
    together = np.asarray(losses_of(rows), np.float64)
    apart = np.asarray(jax.vmap(alone)(rows), np.float64)
    size = np.maximum(np.abs(together), np.mean(np.abs(together)))
    same = np.isclose(apart, together, rtol=0, atol=rtol * size, equal_nan=True)
    if not same.all():
        number = int(np.argmin(same))
        raise ValueError(
            f"{name}: each row's loss must not depend on other rows, found "
            f"{np.sum(~same)} of {num_rows} rows whose loss does: the loss of row "
            f"{number} is {together[number]:.6g} in the batch and {apart[number]:.6g} "
            "alone. Batch normalisation in training mode is a common cause."
        )
