"""Dominance: which term moves which parameter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _groups, _stages, _terms
from multiterm_optax._groups import Groups
from multiterm_optax._stages import Step
from multiterm_optax._typing import Scalar


class TrackDominanceState(NamedTuple):
    """State of :func:`track_dominance`.

    Attributes:
      squared_updates: Moving averages of each term's squared updates, leaves
        [K, *p] in at least float32.
    """

    squared_updates: optax.Updates


def track_dominance(
    num_terms: int, decay: Scalar = 0.99
) -> optax.GradientTransformationExtraArgs:
    r"""Records how much each term moves each parameter; passes updates on unchanged.

    .. math::

      \mathrm{AU}_k \leftarrow \gamma \, \mathrm{AU}_k + (1 - \gamma) \, u_k^2

    Place it where the term axis still exists and the updates are what the terms
    contribute to the step: ``chain(per_term(optax.adam(lr), K), track_dominance(K),
    sum_terms())``. A constant learning rate after it makes no difference to the
    shares. A schedule does make a difference, and belongs before it.

    Args:
      num_terms: K, the number of terms.
      decay: :math:`\gamma`, in [0, 1).

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to the same updates. It
      keeps K copies of the parameters. Read it with :func:`dominance`. ``update`` takes
      the extra argument ``present``, K booleans: an absent term keeps its averages.

    Raises:
      ValueError: ``decay`` is out of range, or an update lacks the leading term
        axis.

    Source:
      Yang et al., "AdaTask", AAAI 2023, Eq. 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> tx = metrics.track_dominance(num_terms=2)
      >>> params = {"w": jnp.zeros(3)}
      >>> updates = {"w": jnp.array([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]])}
      >>> _, state = tx.update(updates, tx.init(params))
      >>> [round(float(x), 3) for x in metrics.dominance(state)["w"][0]]
      [0.9, 0.5, 0.5]
    """
    name = "metrics.track_dominance"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(decay, "decay", name)

    def init_fn(params: optax.Params) -> TrackDominanceState:
        return TrackDominanceState(
            jax.tree.map(lambda p: _terms.zeros_per_term(p, num_terms), params)
        )

    def update_fn(
        step: Step, state: TrackDominanceState
    ) -> tuple[optax.Updates, TrackDominanceState]:
        def average(mean: jax.Array, update: jax.Array) -> jax.Array:
            squared = jnp.square(update.astype(mean.dtype))
            moved = (decay * mean + (1 - decay) * squared).astype(mean.dtype)
            return _terms.keep_absent(step.present, moved, mean)

        return step.updates, TrackDominanceState(
            jax.tree.map(average, state.squared_updates, step.updates)
        )

    # The updates of absent terms are passed on unchanged, too.
    return _stages.stage(name, num_terms, init_fn, update_fn, zeroes_absent=False)


def dominance(state: optax.OptState) -> optax.Updates:
    r"""Each term's share of a parameter's movement.

    .. math:: \mathrm{rAU}_k = \mathrm{AU}_k \Big/ \sum_j \mathrm{AU}_j

    Args:
      state: The state of :func:`track_dominance`, or of any chain that holds one.

    Returns:
      Leaves [K, \*p] in [0, 1] that sum to 1 over the terms; 1/K where nothing has
      moved the parameter.

    Raises:
      ValueError: ``state`` holds no state of :func:`track_dominance`, or several.

    Source:
      Yang et al., "AdaTask", AAAI 2023, Eq. 3.

    Example:
      See :func:`track_dominance`.
    """
    found = [
        leaf
        for leaf in jax.tree.leaves(
            state, is_leaf=lambda x: isinstance(x, TrackDominanceState)
        )
        if isinstance(leaf, TrackDominanceState)
    ]
    if len(found) != 1:
        raise ValueError(
            "metrics.dominance: state must hold exactly one state of "
            f"metrics.track_dominance, found {len(found)}."
        )

    def share(squared: jax.Array) -> jax.Array:
        # Squares of small updates can leave float32's normal range when added up or
        # divided. Relative to the largest term they do not, if its reciprocal, by which
        # XLA multiplies, is a normal number too.
        squared = jnp.where(_terms.max_terms(squared) > 1, 0.25, 1) * squared
        largest = _terms.max_terms(squared)
        relative = squared / jnp.where(largest > 0, largest, 1)
        shares = relative / jnp.where(largest > 0, _terms.sum_terms(relative), 1)
        return jnp.where(largest > 0, shares, 1 / squared.shape[0])

    return jax.tree.map(share, found[0].squared_updates)


def dominance_shares(dominance: optax.Updates, groups: Groups = "global") -> Any:
    r"""How many parameters each term dominates, in the five intervals of the paper.

    A parameter is counted in the fifth of [0, 1] into which its ``rAU`` falls. In
    :math:`(80\%, 100\%]` it is dominated by the term, and in :math:`(40\%, 60\%]` it is
    balanced. The value 0 is counted in the first fifth.

    Args:
      dominance: What :func:`dominance` returns, leaves [K, \*p].
      groups: ``"global"`` counts all parameters together, and ``"leaf"`` counts each
        leaf separately. Otherwise labels, in the form :func:`optax.partition` takes.

    Returns:
      Shares [K, 5] that sum to 1 over the fifths. With ``"leaf"`` the result is a tree
      of them, and with labels a dict.

    Raises:
      ValueError: ``groups`` does not match, or a leaf has no term axis.

    Source:
      Yang et al., "AdaTask", AAAI 2023, RQ2 and Fig. 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> rau = {"w": jnp.array([[0.9, 0.5, 0.5, 0.1], [0.1, 0.5, 0.5, 0.9]])}
      >>> metrics.dominance_shares(rau)[0].tolist()
      [0.25, 0.0, 0.5, 0.0, 0.25]
    """
    name = "metrics.dominance_shares"
    _groups.check_groups(groups, name)
    leaves = jax.tree.leaves(dominance)
    _checks.term_axis(dominance, None, name, leaves[0].shape[0] if leaves else None)
    parts = _groups.partition_updates(groups, dominance, name)
    edges = jnp.arange(5)

    def count_fifths(leaf: jax.Array) -> jax.Array:
        fifth = jnp.clip(jnp.ceil(leaf * 5) - 1, 0, 4)
        hits = fifth[..., None] == edges
        return jnp.sum(hits, axis=tuple(range(1, leaf.ndim)), dtype=jnp.float32)

    shares = []
    for members in parts.members:
        counts = sum((count_fifths(leaves[i]) for i in members), start=jnp.zeros(()))
        total = sum(leaves[i][0].size for i in members)
        shares.append(counts / max(total, 1))
    return parts.pack(shares)
