# Longer than most: weights can be held, shared and absent, and each has its rule.
"""Finds the weights first, then takes one ordinary backward pass."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _terms, _weighting
from multiterm_optax._typing import LossesFn
from multiterm_optax._weighting import Weighting
from multiterm_optax.gradients import _gramian, _problems


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


def value_and_weighted_grad(
    losses_fn: LossesFn,
    weighting: Weighting,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    gramian: _gramian.Way | Literal["rows"] | None = None,
    every: int = 1,
    shared: Any = None,
) -> WeightedGrad:
    r"""Losses and the gradient of their weighted sum, the weights found first.

    .. math::

      w = \mathrm{weighting}(J J^T, L), \qquad
      g = \nabla_\theta \sum_i w_i L_i(\theta) = J^T w

    where the rows of J are the gradients of the K losses and w is held constant. Up to
    rounding the result is that of :func:`multiterm_optax.reweight` and
    :func:`multiterm_optax.sum_terms`, but K gradients are never kept at once, and one
    more backward pass computes g: the only one, if the weighting reads losses only.

    Args:
      losses_fn: As in :func:`multiterm_optax.value_and_term_grads`. With ``present``
        it must not compute with missing values, such as NaN labels.
      weighting: What finds the weights, such as :func:`multiterm_optax.mgda`.
      argnums: Positional argument of ``losses_fn``, or arguments, to differentiate.
      has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.
      gramian: How the dot products are found. ``None``: from activations and the
        losses' derivatives at the layers' outputs where that costs less, else from K
        gradients. ``"leaf"``, ``"stack"``, ``"forward"``: always from K gradients, see
        the page on weights first. ``"rows"``: for row losses; see below.
      every: n, a static int: the weights are found in the first of n steps and held in
        the others, which take one backward pass.
      shared: The parameters that the terms share, as booleans: a tree like the
        gradients, a prefix of it, or a function from what is differentiated to one.
        Only they enter the gramian and receive the weighted gradient; the others, such
        as a term's own head, receive that of the plain sum. ``None``: all are shared.

    Returns:
      A :class:`multiterm_optax.gradients.WeightedGrad`. ``init(num_terms)`` makes the
      state; ``update(state, *args, present=None, **kwargs)`` takes the arguments of
      ``losses_fn`` and the extra arguments that the weighting reads. It returns
      ``(losses, grads, state)``, or ``((losses, aux), grads, state)`` with ``has_aux``.
      ``grads`` looks like the parameters, [\*p], for any Optax optimizer.

      With ``gramian="rows"`` it takes ``(state, params, rows, *args, row_terms=None,
      row_weights=None)`` as :func:`value_and_row_grads`, each row a term by default.
      Every row is computed alone, see :func:`check_row_losses`.

    Raises:
      TypeError: ``weighting``, ``every``, ``shared`` or the state is something else, or
        a loss or parameter is not real floating point.
      ValueError: ``every`` is below 1, ``gramian`` is not a choice or not possible,
        ``shared`` or ``present`` does not fit, or the number of losses is not
        ``num_terms``.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mgda, value_and_weighted_grad
      >>> def losses_fn(w):
      ...     return {"first": w[0], "second": 2 * w[1]}
      >>> weighted_grad = value_and_weighted_grad(losses_fn, mgda())
      >>> state = weighted_grad.init(num_terms=2)
      >>> losses, grads, state = weighted_grad.update(state, jnp.array([3.0, 1.0]))
      >>> [round(float(weight), 6) for weight in state.weights]
      [0.8, 0.2]
      >>> [round(float(g), 6) for g in grads]
      [0.8, 0.4]
    """
    name = "value_and_weighted_grad"
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
            present = _checks.present(present, name, num_terms)
        losses, primals = problem.losses, problem.primals
        several = isinstance(argnums, Sequence)
        named = primals if several else primals[0]
        trunk = None if shared is None else _broadcast(shared, named, name)
        vector: Any = _checks.losses(losses, name, num_terms, needed=True)
        vector = _terms.only_present(present, vector)

        def find() -> tuple[jax.Array, Any]:
            products = None
            if weighting.reads_gramian:
                products = problem.gramian(trunk)
            elif weighting.reads_norms:
                products = problem.squared_norms(trunk)
            weights, inner = _weighting.weights_from(
                weighting,
                *jax.lax.stop_gradient((products, state.weighting, vector)),
                present,
                **extra_args,
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


def _broadcast(shared: Any, tree: Any, name: str) -> list[bool]:
    """One boolean for each leaf of what is differentiated."""
    named = shared(tree) if callable(shared) else shared
    full = _checks.for_each_leaf(
        named, tree, "shared", name, holds="booleans", like="gradients"
    )
    flags = jax.tree.leaves(full)
    for flag in flags:
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: shared must hold booleans, found {flag!r}.")
    if not any(flags):
        raise ValueError(
            f"{name}: shared must name at least one parameter, found none."
        )
    return flags
