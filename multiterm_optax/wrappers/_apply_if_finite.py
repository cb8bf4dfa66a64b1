"""Leaves out terms that are not finite, or skips the step."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Scalar
from multiterm_optax.wrappers._inner import losses_like, step_or_hold


class ApplyIfFiniteState(NamedTuple):
    """State of :func:`apply_if_finite`; an absent term keeps its entries.

    Attributes:
      notfinite_count: Consecutive steps in which the term was not finite, [K], int32.
      last_finite: Whether the term was finite when it was last present, [K].
      total_notfinite: Steps in which the term was not finite, [K], int32.
      notfinite_steps: Consecutive steps in which some term was not finite, int32.
      inner_state: The inner optimizer's state.
    """

    notfinite_count: Int[Array, " K"]
    last_finite: Bool[Array, " K"]
    total_notfinite: Int[Array, " K"]
    notfinite_steps: jax.Array
    inner_state: optax.OptState


def apply_if_finite(
    inner: optax.GradientTransformation,
    num_terms: int,
    max_consecutive_errors: Scalar,
    *,
    skip: Literal["term", "step"] = "term",
) -> optax.GradientTransformationExtraArgs:
    r"""Leaves out terms that are not finite: :func:`optax.apply_if_finite` by term.

    A term is *not finite* in a step if any element of its gradient, or its loss if
    losses are passed, is infinite or NaN. It is then treated as absent: ``inner`` gets
    zeros and ``present=False`` for it. If no finite term is left, the step is skipped:
    the updates are zero, and the state of ``inner`` stays as it was.

    Args:
      inner: A whole optimizer from K terms to one update, such as ``mtadam(1e-3, K)``
        or a chain with an aggregator.
      num_terms: K, the number of terms.
      max_consecutive_errors: How many steps in a row a term may be left out, at least
        0. After that it is passed on, as in Optax, so that a broken run is noticed.
      skip: ``"term"``: as above. ``"step"``: any term that is not finite skips the
        step, at most ``max_consecutive_errors`` in a row, whichever terms they are.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      ``skip="term"``, ``inner`` always gets ``present``: False for terms left out.
      Terms that the caller declares absent are neither read nor counted.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: A hyperparameter is out of range, ``inner`` leaves the term axis on,
        or an update lacks the leading term axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import adatask_adam, apply_if_finite
      >>> tx = apply_if_finite(adatask_adam(0.1, num_terms=2), 2, 10)
      >>> state = tx.init(jnp.zeros(1))
      >>> updates, state = tx.update(jnp.array([[3.0], [jnp.nan]]), state)
      >>> round(float(updates[0]), 4), state.last_finite.tolist()
      (-0.1, [True, False])
      >>> updates, state = tx.update(jnp.full((2, 1), jnp.inf), state)
      >>> float(updates[0]), state.notfinite_count.tolist()
      (0.0, [1, 2])
    """
    name = "apply_if_finite"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    _checks.non_negative(max_consecutive_errors, "max_consecutive_errors", name)
    _checks.one_of(skip, "skip", name, ("term", "step"))
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(
            notfinite_count=jnp.zeros((num_terms,), jnp.int32),
            last_finite=jnp.ones((num_terms,), jnp.bool_),
            total_notfinite=jnp.zeros((num_terms,), jnp.int32),
            notfinite_steps=jnp.zeros([], jnp.int32),
            inner_state=inner.init(params),
        )

    def update_fn(
        step: Step, state: ApplyIfFiniteState
    ) -> tuple[optax.Updates, ApplyIfFiniteState]:
        updates, present, losses = step.updates, step.present, step.losses
        values = step.losses_vector(name, num_terms)
        all_true = jnp.ones((num_terms,), jnp.bool_)
        present_mask = all_true if present is None else present
        finite = all_true if values is None else jnp.isfinite(values)
        for leaf in jax.tree.leaves(updates):
            finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
        failed = present_mask & ~finite
        any_failed = jnp.any(failed)

        more = optax.safe_increment(state.notfinite_count)
        in_a_row = jnp.where(
            failed, more, jnp.where(present_mask, 0, state.notfinite_count)
        )
        steps_in_a_row = jnp.where(
            any_failed, optax.safe_increment(state.notfinite_steps), 0
        )

        if skip == "step":
            is_taken = ~any_failed | (steps_in_a_row > max_consecutive_errors)
        else:
            left_out = failed & (in_a_row <= max_consecutive_errors)
            present = present_mask & ~left_out
            is_taken = jnp.any(present) | ~jnp.any(left_out)
            if values is not None:
                losses = losses_like(losses, _terms.only_present(present, values))

        forwarded = step.forwarded(losses=losses, present=present)

        def take(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            given = updates
            if skip == "term":
                # Zeros also serve stages that ignore ``present``, as Optax's do.
                given = jax.tree.map(partial(_terms.only_present, present), updates)
            return inner.update(given, inner_state, step.params, **forwarded)

        stepped, inner_state = step_or_hold(
            is_taken, take, updates, state.inner_state, name
        )
        return stepped, ApplyIfFiniteState(
            notfinite_count=in_a_row,
            last_finite=jnp.where(present_mask, finite, state.last_finite),
            total_notfinite=jnp.where(
                failed,
                optax.safe_increment(state.total_notfinite),
                state.total_notfinite,
            ),
            notfinite_steps=steps_in_a_row,
            inner_state=inner_state,
        )

    return _stages.stage(name, num_terms, init_fn, update_fn, inner="inner_state")
