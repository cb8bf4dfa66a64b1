"""GradNorm: weights learned so that the terms' gradients have the norms they should."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _terms, _weighting
from multiterm_optax._typing import Gramian, Losses, Scalar, Weights
from multiterm_optax._weighting import Weighting
from multiterm_optax.weightings import _absent, _by_losses


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
      A :class:`multiterm_optax.Weighting` that reads the gramian's diagonal and the
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

    def update(
        gramian: Gramian,
        state: GradNormState,
        *,
        losses: Losses | None = None,
        present: Bool[Array, " K"] | None = None,
        **extra_args: Any,
    ) -> tuple[Weights, GradNormState]:
        del extra_args
        weights, scale = state.learned, None
        num_terms, dtype = weights.size, weights.dtype
        present = _checks.present(present, name, num_terms)
        current = _weighting.losses_vector(
            losses, name, num_terms, needed=True, present=present
        )
        gramian = _weighting.pairs_present(present, gramian)
        count = 1.0 * _absent.number(present, num_terms)
        if present is not None:
            weights = _terms.only_present(present, weights)
            scale = jnp.sum(weights) / count
            weights = _by_losses.summing_to(weights, count, present).astype(dtype)
        current, gramian = jax.lax.stop_gradient((current, gramian))
        current = current.astype(dtype)
        first = jnp.where(state.started, state.first, current)
        left = jnp.maximum(_by_losses.ratio(current, first), 0)
        relative = _by_losses.ratio(left, _absent.mean(present, left))

        norms = jnp.sqrt(jnp.diagonal(gramian)).astype(dtype)
        weighted = weights * norms
        target = _absent.mean(present, weighted) * relative**alpha
        gradient = jnp.sign(weighted - target) * norms
        if present is not None:
            # A term alone has the norm that it should, and no sign of a rounding.
            gradient = _terms.only_present(present & (count > 1), gradient)
        step, optimizer_state = learner.update(gradient, state.optimizer, weights)
        learned = jnp.maximum(optax.apply_updates(weights, step), 0)
        learned = _terms.only_present(present, learned)
        learned = _by_losses.summing_to(learned, count, present)
        if scale is not None:
            learned = learned * scale
        return weights, GradNormState(
            learned=_absent.keep(present, learned.astype(dtype), state.learned),
            first=_absent.keep(present, first, state.first),
            started=_absent.keep(
                present, jnp.ones((num_terms,), jnp.bool_), state.started
            ),
            optimizer=_absent.keep_optimizer(
                present, optimizer_state, state.optimizer, learner.init, weights
            ),
        )

    return Weighting(init, update, reads_losses=True)
