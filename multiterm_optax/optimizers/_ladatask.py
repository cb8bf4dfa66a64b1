# Longer than most: its groups share one moment, safe from overflow and absent terms.
"""Layer-wise AdaTask: one second moment, which the terms share by group."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _groups, _products, _stages, _terms
from multiterm_optax._groups import Groups
from multiterm_optax._stages import Step
from multiterm_optax._typing import Leaf, Norms, Scalar, TermLeaf
from multiterm_optax.optimizers import _finish


class ScaleByLAdaTaskState(NamedTuple):
    """State of the stage behind :func:`ladatask_rmsprop`.

    Attributes:
      contributions: The terms' averaged squared gradients, ``[K]`` for each group: a
        tree like the parameters, one array, or a dict by label.
      whole: The averaged squared gradients of all terms together, a number for each
        group. It is the sum of the contributions as long as no term is absent.
      nu: The averaged squared gradient of all terms, leaves like the parameters, in at
        least float32.
    """

    contributions: Any
    whole: Any
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

    In each group (layer) :math:`\ell` the terms share this moment in proportion to
    their squared gradients in that group:

    .. math::

      C_i &\leftarrow \gamma C_i + (1 - \gamma) \sum_{j \in \ell} g_{i,j}^2, \\
      G &\leftarrow \gamma G + (1 - \gamma) \sum_i g_i^2, \\
      G_i &= \frac{C_i}{\sum_k C_k} \, G, \qquad
      \theta \leftarrow \theta - \alpha \sum_i \frac{g_i}{\sqrt{G_i} + \epsilon} .

    Args:
      learning_rate: A number or an Optax schedule.
      num_terms: K, the number of terms.
      decay: :math:`\gamma`, in [0, 1).
      eps: Added to the denominator.
      total: What :math:`G` averages, which the paper leaves open: ``"sum_sq"``,
        :math:`\sum_i g_i^2`, or ``"grad_sum"``, :math:`(\sum_i g_i)^2`, which makes
        long steps where opposed gradients cancel.
      groups: What counts as a layer; see :func:`multiterm_optax.balance_by_norm`.
      eps_in_sqrt: Put ``eps`` inside the square root.
      weight_decay: As in :func:`multiterm_optax.adatask_rmsprop`.
      mask: Which parameters decay, as in :func:`optax.adamw`.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      K = 1 it is :func:`optax.rmsprop` with ``decay=0.99``. State: one copy of the
      parameters and K + 1 numbers for each group. ``update`` takes the extra argument
      ``present``, K booleans: an absent term keeps its :math:`C_i`.

    Raises:
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

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
    stage = _scale_by_ladatask(num_terms, decay, eps, total, groups, eps_in_sqrt)
    return _finish.step([stage], learning_rate, weight_decay, mask, "ladatask_rmsprop")


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

    def roots_of_shares(contributions: Norms, sum_of_all: jax.Array) -> Norms:
        # Roots come first: the ratio of two squares leaves float32's range long before
        # that of two norms does, and a share of 0 would make a step of g / eps.
        divisor = jnp.sqrt(jnp.where(sum_of_all > 0, sum_of_all, 1))
        # Squares that overflow stop only the elements that they come from.
        return jnp.where(
            jnp.isfinite(sum_of_all), _terms.root(contributions) / divisor, 1
        )

    def move(update: TermLeaf, nu: Leaf, shares: Norms) -> Leaf:
        wide = update.astype(nu.dtype)
        roots = shares.astype(nu.dtype).reshape(-1, *(1,) * nu.ndim)
        own = roots * _terms.root(nu)[None]
        root = _terms.root(own * own + eps) if eps_in_sqrt else own + eps
        return _terms.sum_terms(_terms.quotient(wide, root)).astype(update.dtype)

    def init_fn(params: optax.Params) -> ScaleByLAdaTaskState:
        def zeros_by_group(shape: tuple[int, ...]) -> Any:
            return _groups.init_by_group(
                groups,
                params,
                name,
                lambda leaves: jnp.zeros(shape, _terms.accumulator_dtype(*leaves)),
            )

        return ScaleByLAdaTaskState(
            contributions=zeros_by_group((num_terms,)),
            whole=zeros_by_group(()),
            nu=jax.tree.map(_terms.zeros_like, params),
        )

    def update_fn(
        step: Step, state: ScaleByLAdaTaskState
    ) -> tuple[optax.Updates, ScaleByLAdaTaskState]:
        nu = jax.tree.map(second_moment, step.updates, state.nu)

        def one_group(
            leaves: list[jax.Array],
            contributions: Norms,
            sum_of_all: jax.Array,
            moments: list[jax.Array],
        ) -> tuple[list[jax.Array], Norms, jax.Array]:
            squared = _products.squared_norms(*leaves, num_terms=num_terms)
            # Without the barrier XLA reads the gradients once for each use.
            squared = jax.lax.optimization_barrier(squared)
            sum_of_all = average(sum_of_all, jnp.sum(squared))
            contributions = _terms.keep_absent(
                step.present, average(contributions, squared), contributions
            )
            shares = roots_of_shares(contributions, sum_of_all)
            moved = [
                move(leaf, moment, shares)
                for leaf, moment in zip(leaves, moments, strict=True)
            ]
            return moved, contributions, sum_of_all

        packed = (state.contributions, state.whole)
        moved, contributions, sums = _groups.update_by_group(
            groups, name, one_group, step.updates, packed, nu
        )
        return moved, ScaleByLAdaTaskState(contributions, sums, nu)

    return _stages.stage(name, num_terms, init_fn, update_fn)
