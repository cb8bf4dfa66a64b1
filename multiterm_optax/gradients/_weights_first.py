# Longer than most: weights can be held, parameters not shared, and terms absent.
"""A step that finds the weights of K losses first, then the weighted gradient."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _named, _terms, _weighting
from multiterm_optax._typing import LossesFn
from multiterm_optax._weighting import Weighting
from multiterm_optax.gradients import _gramian, _problems

Way = _gramian.Way | Literal["rows"]


class WeightedGradState(NamedTuple):
    """State of :func:`value_and_weighted_grad`.

    Attributes:
      weights: The weights in use, [K] or [K, K]; ones, or the identity, before the
        first step. Held weights of an absent term are kept but not used.
      weighting: The weighting's own state.
      count: Number of steps so far, int32.
    """

    weights: jax.Array
    weighting: Any
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


class WeightedGrad(NamedTuple):
    """The pair of functions that :func:`value_and_weighted_grad` returns.

    Attributes:
      init: ``init(num_terms) -> state``.
      update: ``update(state, *args, present=None, **kwargs) -> (losses, grads,
        state)``, with the arguments of ``losses_fn``.
    """

    init: Callable[[int], WeightedGradState]
    update: Callable[..., tuple[Any, Any, WeightedGradState]]


def weights_first(
    losses_fn: LossesFn,
    weighting: Weighting,
    argnums: int | Sequence[int],
    has_aux: bool,
    gramian: Way | None,
    every: int,
    shared: Any,
    measured: Any,
    name: str,
) -> WeightedGrad:
    """The pair of functions, with the arguments of :func:`value_and_weighted_grad`."""
    _checks.function(losses_fn, "losses_fn", name)
    _weighting.check(weighting, name)
    _checks.one_of(gramian, "gramian", name, (*_gramian.WAYS, "rows"))
    if gramian == "rows" and (has_aux or argnums != 0):
        raise ValueError(
            f"{name}: with gramian='rows' losses_fn takes (params, rows, *args) and "
            f"returns one loss for each row, so that argnums must be 0 and has_aux "
            f"False, found argnums={argnums!r} and has_aux={has_aux!r}."
        )
    every = _checks.static_int(every, "every", name, low=1)
    asked_for = _weighting.extra_arguments(weighting)

    def init(num_terms: int) -> WeightedGradState:
        num_terms = _checks.num_terms(num_terms, name)
        state = weighting.init(num_terms)
        return WeightedGradState(
            weights=_weighting.neutral_weights(weighting, state, num_terms),
            weighting=state,
            count=jnp.zeros([], jnp.int32),
        )

    def update(
        state: WeightedGradState,
        *args: Any,
        present: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, Any, WeightedGradState]:
        _check_state(state, name)
        extra_args = {key: kwargs.pop(key) for key in asked_for if key in kwargs}
        num_terms = state.weights.shape[-1]
        if gramian == "rows":
            present = _checks.present(present, name, num_terms)
            problem = _problems.of_rows(
                losses_fn, num_terms, present, args, kwargs, name
            )
        else:
            problem = _problems.of_terms(
                losses_fn, args, kwargs, argnums, has_aux, gramian, num_terms, name
            )
            with _named.seen(problem.losses):
                present = _checks.present(present, name, num_terms)
        losses, primals = problem.losses, problem.primals
        several = isinstance(argnums, Sequence)
        named = primals if several else primals[0]
        trunk = None if shared is None else _broadcast(shared, named, "shared", name)
        counted = trunk
        if measured is not None:
            counted = _broadcast(measured, named, "measured", name)
        vector: Any = _checks.losses(losses, name, num_terms, needed=True)
        vector = _terms.only_present(present, vector)

        def find() -> tuple[jax.Array, Any]:
            products = None
            if weighting.reads_gramian:
                products = problem.gramian(counted)
            elif weighting.reads_norms:
                products = problem.squared_norms(counted)
            read_only = jax.lax.stop_gradient((products, state.weighting, vector))
            with _named.seen(losses):  # they say what the terms are called
                weights, inner = _weighting.weights_from(
                    weighting, *read_only, present, **extra_args
                )
            weights = weights.astype(state.weights.dtype)
            if present is not None and every > 1:
                # Zero before the first step, and where the step is to be skipped.
                has_weights = state.count > 0
                ready = _weighting.ready(inner)
                if ready is not None:
                    has_weights = has_weights & ready
                held = jnp.where(has_weights, state.weights, 0)
                weights = jnp.where(_both(present, weights.ndim), weights, held)
            return weights, inner

        if every == 1:
            weights, inner = find()
        else:
            weights, inner = jax.lax.cond(
                state.count % every == 0,
                find,
                lambda: (state.weights, state.weighting),
            )

        total = jax.lax.stop_gradient(weights)
        if present is not None:
            total = _weighting.mask_weights(present, total)
        total = total.sum(axis=0) if total.ndim == 2 else total
        grads = problem.pullback(total)
        if trunk is not None:
            # XLA drops what is not used: the trunk's part of this pass, and the heads'
            # part of the other.
            ones = _terms.only_present(present, jnp.ones_like(total))
            plain = problem.pullback(ones)
            flags = jax.tree.structure(grads).unflatten(trunk)
            grads = jax.tree.map(
                lambda flag, *both: both[not flag], flags, grads, plain
            )
        picked = grads if several else grads[0]
        count = jnp.asarray(optax.safe_increment(state.count))
        after = WeightedGradState(weights, inner, count)
        return ((losses, problem.aux) if has_aux else losses), picked, after

    return WeightedGrad(init, update)


def own_arguments(weighting: Weighting) -> tuple[str, ...]:
    """The keyword arguments of ``update`` that ``losses_fn`` is not given."""
    return ("present", *_weighting.extra_arguments(weighting))


def _both(present: Bool[Array, " K"], ndim: int) -> jax.Array:
    """Which weights, [K] or [K, K], belong to present terms only."""
    return present if ndim == 1 else present[:, None] & present[None, :]


def _check_state(state: Any, name: str) -> None:
    if not isinstance(state, WeightedGradState):
        raise TypeError(
            f"{name}: update must be called as update(state, *args) with the "
            "WeightedGradState that init(num_terms) or the last update returned, found "
            f"{type(state).__name__}."
        )


def _broadcast(flags: Any, tree: Any, argument: str, name: str) -> list[bool]:
    """One boolean for each leaf of what is differentiated."""
    named = flags(tree) if callable(flags) else flags
    full = _checks.for_each_leaf(
        named, tree, argument, name, holds="booleans", like="gradients"
    )
    found = jax.tree.leaves(full)
    for flag in found:
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: {argument} must hold booleans, found {flag!r}.")
    if not any(found):
        raise ValueError(
            f"{name}: {argument} must name at least one parameter, found none."
        )
    return found
