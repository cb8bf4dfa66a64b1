"""MoDo: weights from the gradients of two independent batches, for those of a third."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Norms, Scalar, TermLeaf
from multiterm_optax._weighting import Problem
from multiterm_optax.transforms import _batches, _simplex


class MoDoState(NamedTuple):
    """State of :func:`modo`.

    Attributes:
      shares: K times the weights, [K], if all terms are present; otherwise in
        proportion.
      count: Number of steps taken, int32.
      weights: The weights of the last step, [K]; ones before the first.
    """

    shares: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    weights: jax.Array


def modo(
    num_terms: int, gamma: optax.ScalarOrSchedule = 0.001, *, rho: Scalar = 0.1
) -> optax.GradientTransformationExtraArgs:
    r"""MoDo: min-norm weights without the bias of noise, from independent batches.

    With the gradients :math:`J_1, J_2, J_3` of three batches, from
    :math:`\lambda_i = 1/K`,

    .. math::

      \lambda \leftarrow \Pi_\Delta \bigl( \lambda -
        \gamma_t \, (J_1 J_2^\top + \rho I) \, \lambda \bigr), \qquad
      g_i \leftarrow \lambda_i \, (J_3)_i .

    Args:
      num_terms: K, the number of terms.
      gamma: :math:`\gamma_t`, a number that is not negative or an Optax schedule.
      rho: :math:`\rho`, not negative: draws the weights towards equal ones.

    Returns:
      A transformation of updates whose every leaf is [K, \*p], :math:`J_1`, to updates
      of the same shapes and dtypes. ``update`` takes the extra arguments ``grads_2``
      and ``grads_3``, like the updates; :math:`J_1` replaces any that is not given.
      Stages before this one do not change them, so it comes first in a chain. It takes
      ``present``, K booleans, for all batches: an absent term keeps its share of the
      weights and gets zero updates.

    Raises:
      ValueError: A hyperparameter, the updates or the extra gradients are not as above.

    Source:
      Chen et al., "Three-Way Trade-Off in Multi-Objective Learning: Optimization,
      Generalization and Conflict-Avoidance", NeurIPS 2023.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import modo
      >>> tx = modo(num_terms=2, gamma=0.1, rho=0.0)
      >>> batches = jnp.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 2.0]]])
      >>> updates, _ = tx.update(batches[0], tx.init(jnp.zeros(2)), grads_2=batches[1])
      >>> [[round(float(x), 3) for x in row] for row in updates]
      [[0.525, 0.0], [0.0, 0.95]]
    """
    name = "modo"
    num_terms = _checks.num_terms(num_terms, name)
    _simplex.check_rate(gamma, "gamma", name)
    _checks.non_negative(rho, "rho", name)

    def init_fn(params: optax.Params) -> MoDoState:
        del params
        ones = jnp.ones((num_terms,), jnp.result_type(float))
        return MoDoState(ones, jnp.zeros([], jnp.int32), jnp.array(ones))

    def update_fn(step: Step, state: MoDoState) -> tuple[optax.Updates, MoDoState]:
        problem = Problem(num_terms, step.present)
        second = _batches.grads_of(step, "grads_2", name)
        third = _batches.grads_of(step, "grads_3", name)
        second = step.updates if second is None else second
        third = step.updates if third is None else third
        weights = _simplex.weights_of(problem, state.shares)

        # J_2 is summed first, so that K products suffice instead of K x K.
        def products(first: TermLeaf, other: TermLeaf) -> Norms:
            wide = other.astype(_terms.accumulator_dtype(other))
            return _terms.dots(first, _terms.weighted_sum(weights, wide))

        parts = jax.tree.leaves(jax.tree.map(products, step.updates, second))
        slope = sum(parts, start=jnp.zeros_like(weights)) + rho * weights
        rate = jnp.asarray(_simplex.rate_at(gamma, state.count), weights.dtype)
        slope = jax.lax.stop_gradient(slope).astype(weights.dtype)
        weights = _simplex.descend(problem, weights, rate, slope)
        updates = jax.tree.map(
            lambda g, like: _terms.scale(weights, g).astype(like.dtype),
            third,
            step.updates,
        )
        shares = _simplex.shares_of(problem, weights, state.shares)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, MoDoState(shares, count, weights)

    return _stages.stage(name, num_terms, init_fn, update_fn)
