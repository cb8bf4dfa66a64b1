"""GradNorm: weights learned so that the terms' gradients have the norms they should."""

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
      learned: The weights [K] that the next step will use if all terms are present.
      first: The first losses [K]; zeros before they were seen.
      started: Whether they were [K].
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

    With the norms :math:`n_i = \lVert g_i \rVert = \sqrt{G_{ii}}`, the losses relative
    to the first ones, :math:`\tilde L_i(t) = L_i(t) / L_i(0)`, and
    :math:`r_i = \tilde L_i / \operatorname{mean}_j \tilde L_j`, the weights descend

    .. math::

      \sum_i \bigl| w_i n_i - T_i \bigr|, \qquad
      T_i = \Bigl( \frac1K \sum_j w_j n_j \Bigr) \, r_i^{\alpha}
      \quad\text{held constant,}

    one step of ``optimizer`` at a time, and are then scaled to sum to K. The term whose
    loss has fallen the least is to have the largest gradient.

    A step uses the weights it finds, as in Alg. 1, and learns them for the next one;
    the first weights are 1. A weight that the optimizer would make negative becomes 0,
    where its gradient, :math:`-n_i`, pushes it up again. If all would, they start anew
    at 1. The norms are those of the whole group, where the paper takes the last layer
    that the terms share.

    The terms present in a step share K, their number: their weights are the learned
    ones scaled to this sum. What they have learned is then scaled back to the sum it
    had, so that their share against the absent terms stays as it was.

    Args:
      alpha: :math:`\alpha`, not negative: how strongly the terms are brought to one
        rate of training. 0: equal norms.
      optimizer: The Optax transformation that learns the weights, with its learning
        rate. ``None``: ``optax.adam(0.025)``. The gradients it sees are as large as
        those of the terms: with plain SGD the losses' scale matters.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gradients' norms and the
      losses; the weights [K] sum to K. State: 2 K numbers, K flags, and the
      optimizer's, of which an absent term's part stays, but not a count of steps that
      belongs to all terms. A first loss of zero counts as one that has not changed. A
      loss or a gradient that is not finite makes the learned weights NaN for good: keep
      such steps out.

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
        left = jnp.maximum(_losses.ratio(problem.losses, first), 0)
        relative = _losses.ratio(left, problem.mean(left))

        norms = jnp.sqrt(problem.squared_norms).astype(weights.dtype)
        weighted = weights * norms
        target = problem.mean(weighted) * relative**alpha
        gradient = jnp.sign(weighted - target) * norms
        if problem.present is not None:
            # A term alone has the norm that it should, and no sign of a rounding.
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
