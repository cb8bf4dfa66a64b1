"""Applies a weighting to per-term gradients, all together or group by group."""

from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from multiterm_optax import _groups, _products, _stages, _terms, _weighting
from multiterm_optax._groups import Groups
from multiterm_optax._stages import Step
from multiterm_optax._typing import Losses, Mixing, Norms, Weights
from multiterm_optax._weighting import Weighting


def find_weights(
    weighting: Weighting,
    leaves: list[jax.Array],
    state: Any,
    step: Step,
    losses: Losses | None,
    num_terms: int,
) -> tuple[Weights | Mixing, Any]:
    """One step of a weighting on leaves [K, *p], computing only what it reads.

    Absent terms must already be zero in the losses, and in the leaves too unless the
    weighting reads nothing but norms.
    """
    products = None
    if weighting.reads_gramian:
        products = _products.gramian(*leaves, num_terms=num_terms)
    elif weighting.reads_norms:
        products = _products.squared_norms(*leaves, num_terms=num_terms)
    return _weighting.weights_from(
        weighting, products, state, losses, present=step.present, **step.extra_args
    )


class ReweightState(NamedTuple):
    """State of :func:`reweight`.

    Attributes:
      weights: The weights of the last step, [K] or [K, K]; ones, or the identity,
        before the first. With groups a tree like the parameters or a dict by label.
      weighting: The weighting's own state, one for each group.
    """

    weights: Any
    weighting: Any


def reweight(
    weighting: Weighting, num_terms: int, groups: Groups, name: str
) -> optax.GradientTransformationExtraArgs:
    """Makes a stage from a weighting, whose weights stay in the state."""

    def init_fn(params: optax.Params) -> ReweightState:
        def neutral(leaves: list[Any]) -> jax.Array:
            del leaves
            return _weighting.neutral_weights(
                weighting, weighting.init(num_terms), num_terms
            )

        def start(leaves: list[Any]) -> Any:
            del leaves
            return weighting.init(num_terms)

        by_group = partial(_groups.init_by_group, groups, params, name)
        return ReweightState(weights=by_group(neutral), weighting=by_group(start))

    def update_fn(
        step: Step, state: ReweightState
    ) -> tuple[optax.Updates, ReweightState]:
        losses = step.losses_vector(name, num_terms, needed=weighting.reads_losses)

        def one_group(
            leaves: list[jax.Array], weights: Weights | Mixing, one_state: Any
        ) -> tuple[list[jax.Array], Weights | Mixing, Any]:
            found, one_state = find_weights(
                weighting, leaves, one_state, step, losses, num_terms
            )
            mixed = [_terms.mix(found, leaf) for leaf in leaves]
            return mixed, found.astype(weights.dtype), one_state

        mixed, weights, states = _groups.update_by_group(
            groups, name, one_group, step.updates, (state.weights, state.weighting)
        )
        return mixed, ReweightState(weights, states)

    return _stages.stage(name, num_terms, init_fn, update_fn)


class BalanceByNormState(NamedTuple):
    """State of :func:`balance_by_norm`.

    Attributes:
      norms: Moving averages of the terms' norms, ``[K]`` for each group: a tree
        like the parameters, or a dict by label. 0 for a term not seen yet.
    """

    norms: Any


def balance(
    weighting: Weighting, num_terms: int, groups: Groups, name: str
) -> optax.GradientTransformationExtraArgs:
    """Makes a stage from a weighting that reads norms and keeps only ``norms``.

    Unlike ``reweight`` it keeps the norms as one tree, and no weights.
    """
    _groups.check_groups(groups, name)
    start = jax.eval_shape(lambda: weighting.init(num_terms))

    def init_fn(params: optax.Params) -> BalanceByNormState:
        def one_group(leaves: list[Any]) -> Norms:
            del leaves
            return weighting.init(num_terms).norms

        return BalanceByNormState(
            _groups.init_by_group(groups, params, name, one_group)
        )

    def update_fn(
        step: Step, state: BalanceByNormState
    ) -> tuple[optax.Updates, BalanceByNormState]:
        def one_group(
            leaves: list[jax.Array], norms: Norms
        ) -> tuple[list[jax.Array], Norms]:
            old = start._replace(norms=norms)
            weights, new = find_weights(weighting, leaves, old, step, None, num_terms)
            # If they were masked before, the gradients would have two readers and be
            # copied.
            scaled = (_terms.scale(weights, leaf) for leaf in leaves)
            return [_terms.only_present(step.present, x) for x in scaled], new.norms

        updates, norms = _groups.update_by_group(
            groups, name, one_group, step.updates, (state.norms,)
        )
        return updates, BalanceByNormState(norms)

    return _stages.stage(name, num_terms, init_fn, update_fn, zeroes_absent=False)
