"""MTAdam's first half: brings the terms' gradients to one size, group by group."""

from typing import Any

import optax

from multiterm_optax import _checks, _reweighting, _stages, _words
from multiterm_optax._groups import Groups
from multiterm_optax._typing import Scalar
from multiterm_optax.weightings import by_norm


def balance_by_norm(
    num_terms: int,
    decay: Scalar = 0.9,
    *,
    anchor: int | str | None = None,
    norm_init: Scalar | None = None,
    weights: Any = None,
    groups: Groups = "leaf",
    eps: Scalar = 1e-10,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every term's gradient to the anchor term's size, in each group.

    Multiplies the gradients by the weights that :func:`multiterm_optax.by_norm` finds
    for each group. A constant that multiplies all losses multiplies the result. A group
    where all terms but one are silent, as in a head, stays as it is.

    Args:
      num_terms: K, the number of terms.
      decay: As in :func:`multiterm_optax.by_norm`; :math:`\beta_3` of MTAdam.
      anchor: As in :func:`multiterm_optax.by_norm`, in each group. With a fixed anchor,
        0 in the paper, a group that it does not touch is scaled to zero, and does not
        learn.
      norm_init: As in :func:`multiterm_optax.by_norm`; 1.0 in the paper.
      weights: As in :func:`multiterm_optax.by_norm`.
      groups: ``"leaf"``: each leaf is a group. ``"global"``: one group. Otherwise
        labels as :func:`optax.partition` takes them.
      eps: As in :func:`multiterm_optax.by_norm`.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates of the same
      shapes and dtypes. ``update`` takes the extra argument ``present``, K booleans: an
      absent term gets zero updates and keeps its average.

    Raises:
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      As for :func:`multiterm_optax.by_norm`.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import balance_by_norm
      >>> tx = balance_by_norm(num_terms=2)
      >>> params = {"w": jnp.zeros(2)}
      >>> grads = {"w": jnp.array([[3.0, 4.0], [0.0, 1000.0]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["w"].tolist()
      [[3.0, 4.0], [0.0, 5.0]]
    """
    name = "balance_by_norm"
    num_terms = _checks.num_terms(num_terms, name)
    with _words.speaking_as(name, "by_norm"):
        weighting = by_norm(
            decay, anchor=anchor, norm_init=norm_init, weights=weights, eps=eps
        )
        tx = _reweighting.balance(weighting, num_terms, groups, name)
    return _stages.speaking_as(name, tx, "by_norm")
