"""MTAdam's first half: bring the terms' gradients to one size, group by group."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _groups, _terms
from multiterm_optax._groups import Groups
from multiterm_optax._typing import Norms, Scalar, Weights


class BalanceByNormState(NamedTuple):
    """State of :func:`balance_by_norm`.

    Attributes:
      norms: Moving averages of the terms' norms, ``[K]`` for each group: a tree
        like the parameters, or a dict by label. 0 for a term not seen yet.
    """

    norms: Any


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
    _checks.decay(decay, "decay", name)
    _checks.in_range(eps, "eps", name, low=0.0, high=1.0, open_high=True)
    _groups.check_groups(groups, name)
    if anchor is not None:
        anchor = _checks.term_index(anchor, "anchor", name, num_terms)
    if norm_init is not None:
        _checks.non_negative(norm_init, "norm_init", name)
    if weights is not None:
        weights = _checks.vector(weights, "weights", name, num_terms)

    def average(
        mean: Norms, squared: Norms, present: Bool[Array, " K"] | None
    ) -> Norms:
        norms = jnp.sqrt(squared)
        moved = decay * mean + (1 - decay) * norms
        if norm_init is None:
            moved = jnp.where(mean == 0, norms, moved)
        # A gradient that is not finite must not spoil the average for good.
        counts = jnp.isfinite(norms)
        if present is not None:
            counts = counts & present
        return jnp.where(counts, moved, mean).astype(mean.dtype)

    def factors(norms: Norms) -> Weights:
        heard = norms > eps * jnp.max(norms)
        chosen = jnp.argmax(heard) if anchor is None else anchor
        ratios = norms[chosen] / jnp.where(heard, norms, 1)
        if weights is not None:
            ratios = ratios * weights
        return jnp.where(heard, ratios, 1)

    def init_fn(params: optax.Params) -> BalanceByNormState:
        start = 0.0 if norm_init is None else norm_init

        def one_group(leaves: list[Any]) -> Norms:
            return jnp.full((num_terms,), start, _terms.accumulator_dtype(*leaves))

        return BalanceByNormState(
            _groups.init_by_group(groups, params, name, one_group)
        )

    def update_fn(
        updates: optax.Updates,
        state: BalanceByNormState,
        params: optax.Params | None = None,
        *,
        present: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, BalanceByNormState]:
        del extra_args
        _checks.term_axis(updates, params, name, num_terms)
        _checks.state(state, init_fn, updates, name)
        present = _checks.present(present, name, num_terms)
        only_present = partial(_terms.only_present, present)

        def one_group(
            leaves: list[jax.Array], mean: Norms
        ) -> tuple[list[jax.Array], Norms]:
            squared = sum(map(_terms.squared_norms, leaves), start=jnp.zeros_like(mean))
            norms = average(mean, squared, present)
            ratios = factors(norms)
            return [only_present(_terms.scale(ratios, leaf)) for leaf in leaves], norms

        balanced, norms = _groups.update_by_group(
            groups, name, one_group, updates, (state.norms,)
        )
        return balanced, BalanceByNormState(norms)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
