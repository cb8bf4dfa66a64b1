"""GradNorm: weights learned so that the terms' gradients reach given norms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _learned, _losses


class GradNormState(NamedTuple):
    """State of :func:`gradnorm`.

    Attributes:
      learned: The weights [K] of the next step, if all terms are present in it.
      first: The first losses [K]; zeros before they have been seen.
      started: Whether the first losses have been seen [K].
      optimizer: State of the transformation that learns the weights.
    """

    learned: jax.Array
    first: jax.Array
    started: jax.Array
    optimizer: optax.OptState


def gradnorm(
    alpha: Scalar = 1.5, *, optimizer: optax.GradientTransformation | None = None
) -> Weighting:
    r"""GradNorm: learns the weights by gradient descent on the gradients' norms.

    With the norms :math:`n_i = \lVert g_i \rVert`, the losses relative to the first
    ones, :math:`\tilde L_i(t) = |L_i(t) / L_i(0)|`, and
    :math:`r_i = \tilde L_i / \operatorname{mean}_j \tilde L_j`, the weights descend

    .. math::

      \sum_i \bigl| w_i n_i - T_i \bigr|, \qquad
      T_i = \Bigl( \frac1K \sum_j w_j n_j \Bigr) \, r_i^{\alpha}
      \quad\text{held constant,}

    by one step of ``optimizer`` at a time, and are then scaled to sum to K. The first
    weights are 1; each step uses the weights that the previous step has learned.

    Args:
      alpha: :math:`\alpha`, not negative: how strongly the terms are brought to one
        rate of training. 0: equal norms.
      optimizer: The Optax transformation that learns the weights, with its learning
        rate. ``None``: ``optax.adam(0.025)``. With plain SGD the losses' scale matters.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gradients' norms and the
      losses; the weights [K] sum to K, the number of present terms. A negative loss
      counts by its magnitude. A loss or gradient that is not finite makes the learned
      weights NaN for good, so skip such steps.

    Raises:
      TypeError: ``optimizer`` is not a transformation.
      ValueError: ``alpha`` is negative, or losses are missing.

    Source:
      Chen, Badrinarayanan, Lee and Rabinovich, "GradNorm: Gradient Normalization for
      Adaptive Loss Balancing in Deep Multitask Networks", ICML 2018, Eq. 1 and 2 and
      Alg. 1; defaults from 5.1 and Table 1 (``alpha`` is 0.12 in the toy example, 4).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import gradnorm
      >>> weighting = gradnorm(optimizer=optax.sgd(0.1))
      >>> state = weighting.init(2)
      >>> gramian = jnp.diag(jnp.array([1.0, 9.0]))  # norms 1 and 3
      >>> for _ in range(2):
      ...     weights, state = weighting.update(gramian, state, losses=jnp.ones(2))
      >>> [round(float(w), 3) for w in weights]
      [1.222, 0.778]
    """
    name = "gradnorm"
    _checks.non_negative(alpha, "alpha", name)
    learner = optax.adam(0.025) if optimizer is None else optimizer
    _checks.transformation(learner, "optimizer", name)

    def init(num_terms: int) -> GradNormState:
        dtype = jnp.result_type(float)
        return GradNormState(
            learned=jnp.ones((num_terms,), dtype),
            first=jnp.zeros((num_terms,), dtype),
            started=jnp.zeros((num_terms,), jnp.bool_),
            optimizer=learner.init(jnp.ones((num_terms,), dtype)),
        )

    def find(problem: Problem, state: GradNormState) -> tuple[Weights, GradNormState]:
        num_present = 1.0 * problem.num_present
        weights, scale = state.learned, None
        if problem.present is not None:
            weights = problem.only_present(weights)
            scale = jnp.sum(weights) / num_present
            weights = _losses.summing_to(problem, weights, num_present)
        first = jnp.where(state.started, state.first, problem.losses)
        left = _losses.ratio(problem.losses, first)
        relative = _losses.ratio(left, problem.mean(left))

        norms = jnp.sqrt(problem.squared_norms).astype(weights.dtype)
        weighted = weights * norms
        target = problem.mean(weighted) * relative**alpha
        gradient = jnp.sign(weighted - target) * norms
        if problem.present is not None:
            # A single term has its target norm; any difference would be rounding.
            gradient = jnp.where(problem.present & (num_present > 1), gradient, 0)
        learned, optimizer_state = _learned.step(
            problem, learner, gradient, state.optimizer, weights
        )
        learned = _losses.summing_to(problem, jnp.maximum(learned, 0), num_present)
        if scale is not None:
            learned = learned * scale
        return weights, GradNormState(
            learned=learned.astype(weights.dtype),
            first=first,
            started=jnp.ones_like(state.started),
            optimizer=optimizer_state,
        )

    return _weighting.method(
        name,
        init,
        find,
        reads_norms=True,
        reads_losses=True,
        by_term=("learned", "first", "started"),
    )
