"""Finds the weights first, then takes one ordinary backward pass."""

from collections.abc import Sequence
from typing import Any

from multiterm_optax._typing import LossesFn
from multiterm_optax._weighting import Weighting
from multiterm_optax.gradients import _weights_first
from multiterm_optax.gradients._weights_first import WeightedGrad as WeightedGrad
from multiterm_optax.gradients._weights_first import (
    WeightedGradState as WeightedGradState,
)


def value_and_weighted_grad(
    losses_fn: LossesFn,
    weighting: Weighting,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    gramian: _weights_first.Way | None = None,
    every: int = 1,
    shared: Any = None,
    measured: Any = None,
) -> WeightedGrad:
    r"""Losses and the gradient of their weighted sum, with the weights found first.

    .. math::

      w = \mathrm{weighting}(J J^T, L), \qquad
      g = \nabla_\theta \sum_i w_i L_i(\theta) = J^T w

    where the rows of J are the gradients of the K losses and w is held constant. Up to
    rounding the result is that of :func:`multiterm_optax.reweight` and
    :func:`multiterm_optax.sum_terms`, but K gradients are never kept at once, and one
    more backward pass computes g, the only one if the weighting reads losses only.

    Args:
      losses_fn: As in :func:`multiterm_optax.value_and_term_grads`. With ``present``
        it must not compute with missing values, such as NaN labels.
      weighting: The weighting that finds the weights.
      argnums: Positional argument of ``losses_fn``, or arguments, to differentiate.
      has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.
      gramian: How the dot products are found. ``None``: from activations and
        derivatives at the layers' outputs where that costs less than K gradients.
        ``"leaf"``, ``"stack"``, ``"forward"``: always from K gradients. ``"rows"``: for
        row losses, see below.
      every: n, a static int: the weights are found in the first of n steps and held in
        the others, which take one backward pass.
      shared: The parameters that the terms share, as booleans: a tree like the
        gradients, a prefix of it, or a function from what is differentiated to one.
        Only they enter the gramian and receive the weighted gradient; the others, such
        as a term's own head, receive that of the plain sum. ``None``: all are shared.
      measured: The parameters that enter the gramian, if not the shared ones, in the
        same form, such as the last layer. The K passes end there.

    Returns:
      A :class:`multiterm_optax.gradients.WeightedGrad`. ``init(num_terms)`` makes the
      state; ``update(state, *args, present=None, **kwargs)`` takes the arguments of
      ``losses_fn`` and the extra arguments that the weighting reads. It returns
      ``(losses, grads, state)``, or ``((losses, aux), grads, state)`` with ``has_aux``.
      ``grads`` looks like the parameters, [\*p], for any Optax optimizer.
      With ``gramian="rows"`` it takes ``(state, params, rows, *args, row_terms=None,
      row_weights=None)`` as :func:`value_and_row_grads` does. By default each row is a
      term. Rows are computed alone: see :func:`check_row_losses`.

    Raises:
      TypeError: An argument is of the wrong kind, or a loss or parameter is not real
        floating point.
      ValueError: ``every`` is below 1, ``gramian`` is not possible, or ``shared``,
        ``measured``, ``present`` or the number of losses does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mgda, value_and_weighted_grad
      >>> def losses_fn(w):
      ...     return {"first": w[0], "second": 2 * w[1]}
      >>> weighted_grad = value_and_weighted_grad(losses_fn, mgda())
      >>> state = weighted_grad.init(num_terms=2)
      >>> losses, grads, state = weighted_grad.update(state, jnp.array([3.0, 1.0]))
      >>> [round(float(weight), 6) for weight in state.weights]
      [0.8, 0.2]
      >>> [round(float(g), 6) for g in grads]
      [0.8, 0.4]
    """
    return _weights_first.weights_first(
        losses_fn,
        weighting,
        argnums,
        has_aux,
        gramian,
        every,
        shared,
        measured,
        "value_and_weighted_grad",
    )
