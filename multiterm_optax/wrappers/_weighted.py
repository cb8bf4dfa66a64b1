"""A weighting before an ordinary optimizer; it may ask to skip a step."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _reweighting, _stages, _terms, _weighting
from multiterm_optax._stages import Step
from multiterm_optax._weighting import Weighting
from multiterm_optax.transforms import ReweightState, reweight
from multiterm_optax.wrappers import _searching


class WeightedState(NamedTuple):
    """State of :func:`weighted`.

    Attributes:
      reweight: Weights of the last step, and the weighting's state.
      inner: The inner optimizer's state; a skipped step leaves it as it was.
    """

    reweight: ReweightState
    inner: optax.OptState


def weighted(
    weighting: Weighting, inner: optax.GradientTransformation, num_terms: int
) -> optax.GradientTransformationExtraArgs:
    r"""Applies an ordinary optimizer to the weighted sum of the terms' gradients.

    .. math:: u = \mathrm{inner}\Bigl(\sum_i w_i g_i\Bigr)

    If the weighting asks for the step to be skipped (by ``ready`` in its state, as
    :func:`multiterm_optax.inexact_mgda` does), the updates are zero and the whole state
    of ``inner`` stays unchanged.

    Args:
      weighting: A weighting, such as :func:`multiterm_optax.mgda`.
      inner: The optimizer, with its learning rate, such as ``optax.adam(1e-3)``.
      num_terms: K, the number of terms.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. The
      extra arguments ``losses`` and ``present`` (K booleans; see
      :func:`multiterm_optax.reweight`) go to the weighting only, and all others go to
      ``inner`` as well. If ``inner`` takes ``grad`` and ``value``, it gets those of the
      weighted sum (``value`` only if losses are given), unless you pass your own; if a
      ``value_fn`` returns the losses, it gets their weighted sum. If all terms are
      absent, ``inner`` sees a zero gradient.

    Raises:
      TypeError: ``weighting`` is not a weighting, or ``inner`` not a transformation.
      ValueError: ``losses`` is missing or does not have K values, or an update lacks
        the leading term axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import mgda, weighted
      >>> tx = weighted(mgda(), optax.sgd(1.0), num_terms=2)
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(u), 6) for u in updates]
      [-0.8, -0.4]
    """
    name = "weighted"
    num_terms = _checks.num_terms(num_terms, name)
    _weighting.check(weighting, name)
    _checks.transformation(inner, "inner", name)
    outer = reweight(weighting, num_terms)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> WeightedState:
        outer_state = cast(ReweightState, outer.init(params))
        return WeightedState(reweight=outer_state, inner=inner.init(params))

    def update_fn(
        step: Step, state: WeightedState
    ) -> tuple[optax.Updates, WeightedState]:
        losses = step.losses_vector(name, num_terms, needed=weighting.reads_losses)
        leaves = jax.tree.leaves(step.updates)
        weights, found = _reweighting.find_weights(
            weighting, leaves, state.reweight.weighting, step, losses, num_terms
        )
        # Weighted and summed in one step, since weighted terms would be K more copies.
        total = jax.tree.map(partial(_terms.weighted_sum, weights), step.updates)
        outer_state = ReweightState(weights.astype(jnp.result_type(float)), found)

        def value(values: Any) -> jax.Array:
            vector = step._replace(losses=values).losses_vector(name, num_terms)
            return _terms.weighted_sum(weights, cast(jax.Array, vector))

        # Only here is it known which loss has the gradient that the inner optimizer
        # gets.
        extra_args = _searching.accepted(
            inner.update,
            _searching.arguments(step.extra_args, total, losses, value),
            step.extra_args,
        )

        def take(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            with _searching.saying_the_way_round(name):
                return inner.update(total, inner_state, step.params, **extra_args)

        ready = _weighting.ready(found)
        if ready is None:
            stepped, inner_state = take(state.inner)
            _checks.shapes_kept(stepped, total, name)
        else:
            shapes, _ = jax.eval_shape(take, state.inner)
            _checks.shapes_kept(shapes, total, name)

            def skip(inner_state: optax.OptState) -> tuple[Any, optax.OptState]:
                # zeros_like keeps the shardings.
                return jax.tree.map(jnp.zeros_like, shapes), inner_state

            stepped, inner_state = jax.lax.cond(ready, take, skip, state.inner)
        return stepped, WeightedState(outer_state, inner_state)

    return _stages.stage(name, num_terms, init_fn, update_fn, inner="inner")
