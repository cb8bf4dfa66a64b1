# Longer than most: it estimates the gradients' errors itself, over epochs.
"""MGDA that measures the gradients' errors and skips steps that they could reverse."""

from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Norms, Scalar, TermLeaf
from multiterm_optax.weightings import inexact_mgda
from multiterm_optax.wrappers import WeightedState, weighted


class AdaptiveMGDAState(NamedTuple):
    """State of :func:`adaptive_mgda`.

    Attributes:
      weighted: State of the inexact MGDA step: weights, ``ready``, the number of
        ``skipped`` steps, and the inner optimizer's state.
      eps: The bounds in use, [K]: 0 in the first epoch.
      count: Number of steps in this epoch, int32.
      term_counts: Number of these steps in which each term was present, [K], int32.
      mean: Mean gradients of this epoch, leaves [K, *p], in at least float32.
      spread: Sums of squared distances from these means, [K].
    """

    weighted: WeightedState
    eps: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    term_counts: jax.Array
    mean: optax.Updates
    spread: jax.Array


def adaptive_mgda(
    inner: optax.GradientTransformation,
    num_terms: int,
    scale: Scalar = 0.1,
    *,
    steps_per_epoch: int | Scalar,
    rule: Literal["std", "variance"] = "std",
) -> optax.GradientTransformationExtraArgs:
    r"""MGDA that skips the steps for which its gradients are too noisy.

    It steps as ``weighted(inexact_mgda(eps), inner, num_terms)`` does, with bounds
    :math:`\epsilon_i` measured at the end of every epoch of N steps, from all gradients
    of the epoch:

    .. math::

      \hat\epsilon_i^2 = \frac1N \sum_t \lVert g_{i,t} \rVert^2 -
        \Bigl\lVert \frac1N \sum_t g_{i,t} \Bigr\rVert^2 , \qquad
      \epsilon_i = \lambda \hat\epsilon_i .

    The bounds are 0 in the first epoch.

    Args:
      inner: The optimizer, with its learning rate, such as ``optax.adam(1e-3)``. A
        skipped step leaves its whole state unchanged.
      num_terms: K, the number of terms.
      scale: :math:`\lambda`, not negative.
      steps_per_epoch: N, the number of steps after which the bounds are renewed.
      rule: ``"std"``: as above and in the text of the thesis. ``"variance"``: line 16
        of its algorithm as printed, :math:`\epsilon_i^2 = \lambda \hat\epsilon_i^2`.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p], zero
      for a skipped step. State: K copies of the parameters for the mean gradients, and
      ``inner``'s. ``update`` takes the extra argument ``present``, K booleans: a term's
      bound comes from the steps of the epoch in which it was present, if there are two
      or more.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      Aygar, "Pareto-Efficient Training of Multi-Task Deep Networks", master's thesis,
      NYU Tandon, 2019, 2.3, Eq. 2.13 to 2.16 and the algorithm after them.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import adaptive_mgda
      >>> tx = adaptive_mgda(optax.sgd(1.0), num_terms=2, steps_per_epoch=2)
      >>> state = tx.init(jnp.zeros(2))
      >>> for noise in (-10.0, 10.0):
      ...     grads = jnp.array([[1.0, 1.0 + noise], [1.0, 1.0]])
      ...     updates, state = tx.update(grads, state)
      >>> [round(float(e), 4) for e in state.eps]  # a tenth of the standard deviation
      [1.0, 0.0]
    """
    name = "adaptive_mgda"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    _checks.non_negative(scale, "scale", name)
    _checks.in_range(steps_per_epoch, "steps_per_epoch", name, low=1.0)
    _checks.one_of(rule, "rule", name, ("std", "variance"))

    def stepper(eps: Any) -> optax.GradientTransformationExtraArgs:
        return weighted(inexact_mgda(eps), inner, num_terms)

    def bounds(variance: Norms) -> Norms:
        found = scale * jnp.sqrt(variance)
        if rule == "variance":
            found = jnp.sqrt(scale * variance)
        return found.astype(variance.dtype)

    def init_fn(params: optax.Params) -> AdaptiveMGDAState:
        dtype = _terms.accumulator_dtype(*jax.tree.leaves(params))
        return AdaptiveMGDAState(
            weighted=cast(WeightedState, stepper(0.0).init(params)),
            eps=jnp.zeros((num_terms,), dtype),
            count=jnp.zeros([], jnp.int32),
            term_counts=jnp.zeros([num_terms], jnp.int32),
            mean=jax.tree.map(lambda p: _terms.zeros_per_term(p, num_terms), params),
            spread=jnp.zeros((num_terms,), dtype),
        )

    def update_fn(
        step: Step, state: AdaptiveMGDAState
    ) -> tuple[optax.Updates, AdaptiveMGDAState]:
        keep_absent = partial(_terms.keep_absent, step.present)
        stepped, inner_state = stepper(state.eps).update(
            step.updates, state.weighted, step.params, **step.forwarded()
        )
        step_count = state.count + 1
        term_counts = keep_absent(state.term_counts + 1, state.term_counts)
        # An absent term's divisor is not used, but must not be 0.
        divisors = jnp.maximum(term_counts, 1).astype(state.spread.dtype)
        has_mean = divisors > 1
        started = partial(_terms.only_present, has_mean)

        def away(update: TermLeaf, mean: TermLeaf) -> TermLeaf:
            return update.astype(mean.dtype) - started(mean)

        def move(mean: TermLeaf, distance: TermLeaf) -> TermLeaf:
            moved = started(mean) + _terms.scale(1 / divisors, distance)
            return keep_absent(moved, mean)

        distances = jax.tree.map(away, step.updates, state.mean)
        mean = jax.tree.map(move, state.mean, distances)
        squared = sum(
            map(_terms.squared_norms, jax.tree.leaves(distances)),
            start=jnp.zeros_like(state.spread),
        )
        share = (divisors - 1) / divisors
        spread = keep_absent(started(state.spread) + share * squared, state.spread)
        ended = step_count >= steps_per_epoch
        eps = bounds(spread / divisors)
        # A gradient that is not finite says nothing about the errors of others.
        measured = ended & has_mean & jnp.isfinite(eps)
        return stepped, AdaptiveMGDAState(
            weighted=cast(WeightedState, inner_state),
            eps=jnp.where(measured, eps, state.eps),
            count=jnp.where(ended, 0, step_count).astype(jnp.int32),
            term_counts=jnp.where(ended, 0, term_counts).astype(jnp.int32),
            mean=mean,
            spread=spread,
        )

    tx = _stages.stage(name, num_terms, init_fn, update_fn, inner="weighted")
    return _stages.speaking_as(name, tx, "weighted", "inexact_mgda")
