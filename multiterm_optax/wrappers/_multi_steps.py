# Longer than most: means of gradients and of losses, with terms that may be absent.
"""Accumulation over microbatches before a whole K -> 1 optimizer."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Losses, TermLeaf
from multiterm_optax.wrappers._inner import losses_like, step_or_hold


class MultiStepsState(NamedTuple):
    """State of :func:`multi_steps`.

    ``mini_step == 0`` after an update means that ``inner`` has just taken a step on the
    means, which are still stored. The next microbatch starts new ones.

    Attributes:
      mini_step: Microbatches since the last step, int32.
      gradient_step: Steps of ``inner``, int32.
      inner_opt_state: The inner optimizer's state.
      acc_grads: Means of the terms' gradients, leaves [K, *p], in at least float32.
      acc_losses: Means of the losses, [K]; zeros if none are passed.
      acc_count: Number of these microbatches that have each term, [K], int32.
    """

    mini_step: jax.Array
    gradient_step: jax.Array
    inner_opt_state: optax.OptState
    acc_grads: optax.Updates
    acc_losses: Losses
    acc_count: jax.Array


def multi_steps(
    inner: optax.GradientTransformation,
    num_terms: int,
    every_k_schedule: int | jax.Array | Callable[[jax.Array], Any],
) -> optax.GradientTransformationExtraArgs:
    r"""One step of ``inner`` for several microbatches, as in :class:`optax.MultiSteps`.

    It keeps the mean of each term's gradients over k microbatches,

    .. math:: \bar g_i \leftarrow \bar g_i + (g_i - \bar g_i) / n_i ,

    where :math:`n_i` counts the microbatches in which term i was present, and likewise
    the mean of its losses. At the k-th microbatch ``inner`` takes one step on the
    means; at the others the updates are zero. If the losses are means over examples and
    all microbatches have the same size, this is the step on the large batch.

    Args:
      inner: A whole optimizer from K terms to one update, such as ``mtadam(1e-3, K)``
        or a chain with an aggregator.
      num_terms: K, the number of terms.
      every_k_schedule: k, or a function from the number of steps taken to k.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. The
      means of ``losses`` are passed to ``inner`` in the structure they came in; pass
      losses for every microbatch or for none. If ``present`` is passed, ``inner`` gets
      True for terms present in any of the k. Other extra arguments come from the k-th.

    Raises:
      TypeError: ``inner`` is not a transformation, or ``every_k_schedule`` is neither
        an int nor a function.
      ValueError: ``every_k_schedule`` is less than 1, ``inner`` leaves the term axis
        on, or an update lacks the leading term axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import adatask, multi_steps
      >>> tx = multi_steps(adatask(optax.sign_sgd(0.5), 2), 2, every_k_schedule=2)
      >>> state = tx.init(jnp.zeros(1))
      >>> for grads in ([[1.0], [-8.0]], [[3.0], [9.0]]):  # means 2 and 0.5
      ...     updates, state = tx.update(jnp.array(grads), state)
      ...     print(updates.tolist(), int(state.mini_step), int(state.gradient_step))
      [0.0] 1 0
      [-1.0] 0 1
    """
    name = "multi_steps"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    schedule = _schedule(every_k_schedule, name)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> MultiStepsState:
        return MultiStepsState(
            mini_step=jnp.zeros([], jnp.int32),
            gradient_step=jnp.zeros([], jnp.int32),
            inner_opt_state=inner.init(params),
            acc_grads=jax.tree.map(
                lambda p: _terms.zeros_per_term(p, num_terms), params
            ),
            acc_losses=jnp.zeros((num_terms,), jnp.result_type(float)),
            acc_count=jnp.zeros((num_terms,), jnp.int32),
        )

    def update_fn(
        step: Step, state: MultiStepsState
    ) -> tuple[optax.Updates, MultiStepsState]:
        present = step.present
        losses = step.losses_vector(name, num_terms)
        # The means are reset by the next microbatch: setting them to zero after a step
        # would cost two more copies of K gradients.
        first = state.mini_step == 0
        counts = jnp.where(first, 0, state.acc_count)
        counts = counts + (1 if present is None else present.astype(jnp.int32))

        def mean(old: TermLeaf, new: TermLeaf) -> TermLeaf:
            """Welford's running mean; an absent term keeps its own."""
            old = jnp.where(first, jnp.zeros([], old.dtype), old)
            distance = new.astype(old.dtype) - old
            share = 1 / jnp.maximum(counts, 1).astype(old.dtype)
            return old + _terms.only_present(present, _terms.scale(share, distance))

        acc_grads = jax.tree.map(mean, state.acc_grads, step.updates)
        acc_losses, passed = state.acc_losses, None
        if losses is not None:
            acc_losses = mean(acc_losses, losses)
            passed = losses_like(step.losses, acc_losses)
        forwarded = step.forwarded(
            losses=passed, present=None if present is None else counts > 0
        )

        def take(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            means = optax.tree.cast_like(acc_grads, step.updates)
            return inner.update(means, inner_state, step.params, **forwarded)

        num_done = state.mini_step + 1
        last = num_done >= schedule(state.gradient_step)
        stepped, inner_state = step_or_hold(
            last, take, step.updates, state.inner_opt_state, name
        )
        return stepped, MultiStepsState(
            mini_step=jnp.where(last, 0, num_done),
            gradient_step=jnp.where(
                last, optax.safe_increment(state.gradient_step), state.gradient_step
            ),
            inner_opt_state=inner_state,
            acc_grads=acc_grads,
            acc_losses=acc_losses,
            acc_count=counts,
        )

    return _stages.stage(name, num_terms, init_fn, update_fn, inner="inner_opt_state")


def _schedule(value: Any, name: str) -> Callable[[jax.Array], Any]:
    if callable(value):
        return value
    if isinstance(value, jax.Array):  # traced, under optax.inject_hyperparams
        return lambda step: value
    try:
        every = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: every_k_schedule must be an int or a function of the number of "
            f"steps taken, found {value!r}."
        ) from None
    if isinstance(value, bool) or every < 1:
        raise ValueError(
            f"{name}: every_k_schedule must be at least 1, found {value!r}."
        )
    return lambda step: every
