"""MTAdam's first half: bring the terms' gradients to one size, group by group."""

from typing import Any

import optax

from multiterm_optax import _checks, _reweighting, _words
from multiterm_optax._groups import Groups
from multiterm_optax._typing import Scalar
from multiterm_optax.weightings import by_norm


def balance_by_norm(
    num_terms: int,
    decay: Scalar = 0.9,
    *,
    anchor: int | None = None,
    norm_init: Scalar | None = None,
    weights: Any = None,
    groups: Groups = "leaf",
    eps: Scalar = 1e-10,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales every term's gradient to the anchor term's size, in each group.

    For term :math:`i` and group :math:`\ell`, with the anchor :math:`a`,

    .. math::

      n_i &\leftarrow \beta_3 n_i + (1-\beta_3) \lVert g_i \rVert_2, \\
      g_i &\leftarrow w_i \, \frac{n_a}{n_i} \, g_i .

    A term is *silent* in a group when :math:`n_i \le \epsilon \max_j n_j`; a silent
    term passes unscaled. The comparison is relative, so that multiplying all losses
    by a constant multiplies the result by it and changes nothing else. A group
    where all terms but one are silent (a head) is left as it is.

    Args:
      num_terms: K, the number of terms.
      decay: :math:`\beta_3`, in [0, 1).
      anchor: Index of the term that keeps its size. ``None``: the first term that
        is not silent, chosen in each group at each step. With a fixed anchor, as the
        paper prints it (``anchor=0``), a group that the anchor does not touch is
        scaled to zero and does not learn.
      norm_init: ``None``: each term's average starts at its first nonzero norm in
        the group, whenever that comes. A float: it starts at this value, 1.0 in the
        paper; the method then depends on the scale of the losses.
      weights: Fixed relative weights :math:`w` of shape [K], non-negative, the
        anchor's included. ``None``: all 1.
      groups: ``"leaf"``: each leaf is a group. ``"global"``: one group. Otherwise
        labels as :func:`optax.partition` takes them: a tree of labels, a prefix of
        it, or a function of the parameters that returns one.
      eps: :math:`\epsilon`, the norm relative to the largest under which a term is
        silent, in [0, 1).

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates of the same
      shapes and dtypes. Norms are accumulated in at least float32, which holds those
      between 1e-19 and 1e19; a norm that is not finite leaves its average as it was.
      ``update`` takes the extra argument ``present``, K booleans: a term that is absent
      gets zero updates and keeps its average, by which it may still be the anchor, so
      that the group's size does not jump.

    Raises:
      ValueError: A hyperparameter is out of range, or an update has not the term axis
        first.

    Source:
      Malkiel and Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss
      Terms", Alg. 1, lines 6 to 8. The defaults of ``anchor`` and ``norm_init``
      follow the authors' code rather than the printed form.

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
        return _reweighting.balance(weighting, num_terms, groups, name)
