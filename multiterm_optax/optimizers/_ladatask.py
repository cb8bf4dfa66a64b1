"""Layer-wise AdaTask: one second moment, shared out among the terms by group."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _groups, _terms
from multiterm_optax._groups import Groups
from multiterm_optax._typing import Leaf, Norms, Scalar, TermLeaf


class ScaleByLAdaTaskState(NamedTuple):
    """State of the stage behind :func:`ladatask_rmsprop`.

    Attributes:
      contributions: The terms' averaged squared gradients, ``[K]`` for each group: a
        tree like the parameters, one array, or a dict by label.
      nu: The averaged squared gradient of all terms, leaves like the parameters, in at
        least float32.
    """

    contributions: Any
    nu: optax.Updates


def ladatask_rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    num_terms: int,
    decay: Scalar = 0.99,
    eps: Scalar = 1e-8,
    *,
    total: Literal["sum_sq", "grad_sum"] = "sum_sq",
    groups: Groups = "leaf",
    eps_in_sqrt: bool = False,
    weight_decay: Scalar | None = None,
    mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Efficient AdaTask: RMSProp with one second moment for all terms.

    The terms share it in each group (layer) :math:`\ell` in the proportions of their
    squared gradients there:

    .. math::

      C_i &\leftarrow \gamma C_i + (1 - \gamma) \sum_{j \in \ell} g_{i,j}^2, \qquad
      G \leftarrow \gamma G + (1 - \gamma) \sum_i g_i^2, \\
      G_i &= \frac{C_i}{\sum_k C_k} \, G, \qquad
      \theta \leftarrow \theta - \alpha \sum_i \frac{g_i}{\sqrt{G_i} + \epsilon} .

    State: one copy of the parameters and K numbers a group, where
    :func:`multiterm_optax.adatask_rmsprop` keeps K copies. The mean in place of the
    sum over the group changes nothing.

    Args:
      learning_rate: A number or an Optax schedule.
      num_terms: K, the number of terms.
      decay: :math:`\gamma`, in [0, 1).
      eps: Added to the denominator.
      total: What :math:`G` averages. ``"sum_sq"``: :math:`\sum_i g_i^2`, so that the
        :math:`G_i` add up to AdaTask's. ``"grad_sum"``: :math:`(\sum_i g_i)^2`, the
        second moment of the plain optimizer; where opposed gradients cancel it is
        small and the single terms' steps are large. The paper leaves it open.
      groups: What counts as a layer; see :func:`multiterm_optax.balance_by_norm`.
      eps_in_sqrt: Put ``eps`` inside the square root.
      weight_decay: Decoupled weight decay, multiplied by the learning rate, once and
        not K times. ``None``: none, and ``update`` does not need ``params``.
      mask: Which parameters decay, as in :func:`optax.adamw`.

    Returns:
      An optimizer: per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      K = 1 it is :func:`optax.rmsprop` with ``decay=0.99``.

    Raises:
      ValueError: A hyperparameter is out of range, or an update has not the term axis
        first.

    Source:
      Yang et al., "AdaTask", AAAI 2023, Eq. 8 and 9.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import ladatask_rmsprop
      >>> tx = ladatask_rmsprop(0.1, num_terms=2, decay=0.0)
      >>> updates, _ = tx.update(jnp.array([[1.0], [1e6]]), tx.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.2
    """
    stages = [_scale_by_ladatask(num_terms, decay, eps, total, groups, eps_in_sqrt)]
    if weight_decay is not None:
        stages.append(optax.add_decayed_weights(weight_decay, mask))
    return optax.chain(*stages, optax.scale_by_learning_rate(learning_rate))


def _scale_by_ladatask(
    num_terms: int,
    decay: Scalar,
    eps: Scalar,
    total: str,
    groups: Groups,
    eps_in_sqrt: bool,
) -> optax.GradientTransformationExtraArgs:
    name = "ladatask_rmsprop"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(decay, "decay", name)
    _checks.non_negative(eps, "eps", name)
    _checks.one_of(total, "total", name, ("sum_sq", "grad_sum"))
    _groups.check_groups(groups, name)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        return (decay * old + (1 - decay) * new).astype(old.dtype)

    def second_moment(update: TermLeaf, nu: Leaf) -> Leaf:
        wide = update.astype(nu.dtype)
        if total == "sum_sq":
            return average(nu, _terms.sum_terms(wide * wide))
        return average(nu, jnp.square(_terms.sum_terms(wide)))

    def shares_of(contributions: Norms) -> Norms:
        largest = jnp.max(contributions)
        relative = contributions / jnp.where(largest > 0, largest, 1)
        whole = jnp.sum(relative)
        return relative / jnp.where(whole > 0, whole, 1)

    def step(update: TermLeaf, nu: Leaf, shares: Norms) -> Leaf:
        wide = update.astype(nu.dtype)
        over = shares.astype(nu.dtype).reshape(-1, *(1,) * nu.ndim)
        own = over * nu
        root = jnp.sqrt(own + eps) if eps_in_sqrt else jnp.sqrt(own) + eps
        # Nothing accumulated and eps = 0: no gradient, no step.
        moved = jnp.where(root > 0, wide / jnp.where(root > 0, root, 1), 0)
        return _terms.sum_terms(moved).astype(update.dtype)

    def init_fn(params: optax.Params) -> ScaleByLAdaTaskState:
        leaves = jax.tree.leaves(params)
        parts = _groups.partition(groups, params, name)

        def nothing(members: list[int]) -> jax.Array:
            dtype = _terms.accumulator_dtype(*(leaves[i] for i in members))
            return jnp.zeros((num_terms,), dtype)

        return ScaleByLAdaTaskState(
            contributions=parts.pack([nothing(members) for members in parts.members]),
            nu=jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=_terms.accumulator_dtype(p)), params
            ),
        )

    def update_fn(
        updates: optax.Updates,
        state: ScaleByLAdaTaskState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLAdaTaskState]:
        del extra_args
        _checks.term_axis(updates, params, name, num_terms)
        parts = _groups.partition_updates(groups, updates, name)
        leaves, structure = jax.tree.flatten(updates)
        nu = jax.tree.map(second_moment, updates, state.nu)
        moments = jax.tree.leaves(nu)
        contributions = []
        for members, old in zip(
            parts.members, parts.unpack(state.contributions), strict=True
        ):
            squared = sum(
                (_terms.squared_norms(leaves[i]) for i in members),
                start=jnp.zeros_like(old),
            )
            contributions.append(average(old, squared))
            shares = shares_of(contributions[-1])
            for i in members:
                leaves[i] = step(leaves[i], moments[i], shares)
        return structure.unflatten(leaves), ScaleByLAdaTaskState(
            parts.pack(contributions), nu
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
