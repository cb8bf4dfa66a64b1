# Longer than most: it differentiates, balances and steps, one parameter at a time.
"""MTAdam's step without K gradients in memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _named, _terms, _weighting
from multiterm_optax._typing import Leaf, LossesFn, Scalar, TermLeaf, Weights
from multiterm_optax._weighting import Weighting
from multiterm_optax.gradients import _inputs, _term_by_term
from multiterm_optax.gradients._term_by_term import Made


class MaxAdamGradState(NamedTuple):
    """State of :func:`value_and_max_adam`.

    Attributes:
      count: Number of steps taken, int32.
      term_counts: Number of steps in which each term was present, [K], int32.
      mu: First moment of the sum of the terms, leaves [*p].
      nu: Second moments of the terms, leaves [K, *p], in at least float32.
      weighting: The weighting's own state for each leaf.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    term_counts: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    weighting: Any


class MaxAdamGrad(NamedTuple):
    """The pair of functions that :func:`value_and_max_adam` returns.

    Attributes:
      init: ``init(params, num_terms) -> state``.
      update: ``update(state, params, *args, present=None, **kwargs) -> (losses,
        updates, state)``, with the arguments of ``losses_fn``.
    """

    init: Callable[[optax.Params, int], MaxAdamGradState]
    update: Callable[..., tuple[Any, optax.Updates, MaxAdamGradState]]


def value_and_max_adam(
    losses_fn: LossesFn,
    weighting: Weighting,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    has_aux: bool = False,
) -> MaxAdamGrad:
    r"""Losses and MTAdam's direction, for many terms: no K gradients are kept.

    Up to rounding the direction is that of :func:`value_and_term_grads`,
    :func:`reweight` with ``groups="leaf"`` (with :func:`by_norm` as the weighting, of
    :func:`balance_by_norm`) and :func:`scale_by_max_adam`:

    .. math:: u = \sum_i \frac{\hat m_i}{\sqrt{\max_j \hat v_j} + \epsilon}

    with the moments of the weighted gradients. The gradient of one term and one dense
    layer at a time is made, added to the moments and dropped; the norms are found
    before, from the layer's inputs and the derivatives at its outputs. Parameters that
    are used in another way (in convolutions, loops or more than once) take K gradients.

    Args:
      losses_fn: ``losses_fn(params, *args, **kwargs)``, as in
        :func:`value_and_term_grads`. With ``present`` it must not compute with missing
        values, such as NaN labels.
      weighting: The weighting of the terms in each leaf, such as ``by_norm()``. It
        reads norms or losses, not the gramian.
      b1: Decay rate of the first moment, in [0, 1).
      b2: Decay rate of the second moments, in [0, 1).
      eps: Added to the denominator.
      has_aux: Whether ``losses_fn`` returns ``(losses, aux)``.

    Returns:
      A :class:`multiterm_optax.gradients.MaxAdamGrad`. ``init(params, num_terms)``
      makes the state, K + 1 copies of the parameters; ``update(state, params, *args,
      present=None, **kwargs)`` returns ``(losses, updates, state)``, or ``((losses,
      aux), updates, state)``. ``updates`` [\*p] points uphill, as that of
      :func:`scale_by_max_adam` does: ``optax.scale_by_learning_rate`` follows. XLA
      updates the moments in place if the state is donated to ``jax.jit``.

    Raises:
      TypeError: An argument is of the wrong kind, or a loss or parameter is not real
        floating point.
      ValueError: A hyperparameter is out of range, the weighting reads the gramian, or
        ``present`` or the number of losses does not fit.

    Source:
      Malkiel and Wolf, "MTAdam", Alg. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import by_norm, value_and_max_adam
      >>> def losses_fn(w):  # the second term shouts 1000 times louder
      ...     return {"a": (w[0] - 1.0) ** 2, "b": 1000 * (w[1] + 1.0) ** 2}
      >>> max_adam, w = value_and_max_adam(losses_fn, by_norm()), jnp.zeros(2)
      >>> losses, updates, state = max_adam.update(max_adam.init(w, num_terms=2), w)
      >>> [round(float(u), 4) for u in updates]
      [-1.0, 1.0]
    """
    name = "value_and_max_adam"
    _checks.function(losses_fn, "losses_fn", name)
    _weighting.check(weighting, name)
    if weighting.reads_gramian:
        raise ValueError(
            f"{name}: weighting must read the norms or the losses only, as by_norm() "
            "does, found one that reads the gramian, whose products of two gradients "
            "need both at once; use reweight with value_and_term_grads."
        )
    _checks.decay(b1, "b1", name)
    _checks.decay(b2, "b2", name)
    _checks.non_negative(eps, "eps", name)
    asked_for = _weighting.extra_arguments(weighting)

    def init(params: optax.Params, num_terms: int) -> MaxAdamGradState:
        num_terms = _checks.num_terms(num_terms, name)
        _checks.arrays(params, name)
        return MaxAdamGradState(
            count=jnp.zeros([], jnp.int32),
            term_counts=jnp.zeros([num_terms], jnp.int32),
            mu=jax.tree.map(lambda p: _terms.zeros_like(p, jnp.result_type(p)), params),
            nu=jax.tree.map(lambda p: _terms.zeros_per_term(p, num_terms), params),
            weighting=jax.tree.map(lambda _: weighting.init(num_terms), params),
        )

    def update(
        state: MaxAdamGradState,
        params: optax.Params,
        *args: Any,
        present: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, optax.Updates, MaxAdamGradState]:
        if not isinstance(state, MaxAdamGradState):
            raise TypeError(
                f"{name}: update must be called as update(state, params, *args) with "
                "the MaxAdamGradState that init(params, num_terms) or the last update "
                f"returned, found {type(state).__name__}."
            )
        extra_args = {key: kwargs.pop(key) for key in asked_for if key in kwargs}
        num_terms = state.term_counts.shape[0]
        function, _ = _inputs.of_primals(
            losses_fn, (params, *args), kwargs, 0, has_aux, name
        )
        losses, linear, aux = jax.linearize(function, params, has_aux=True)
        found = _inputs.count_losses(losses, name)
        if found != num_terms:
            raise ValueError(
                f"{name}: losses_fn must return num_terms={num_terms} losses, as given "
                f"to init, found {found}{_named.listed(losses)}."
            )
        with _named.seen(losses):
            present = _checks.present(present, name, num_terms)
        vector: Any = _checks.losses(losses, name, num_terms, needed=True)
        vector = _terms.only_present(present, vector)
        step_count = jnp.asarray(optax.safe_increment(state.count))
        term_counts = _terms.keep_absent(
            present,
            jnp.asarray(optax.safe_increment(state.term_counts)),
            state.term_counts,
        )
        correct_mu = 1 / _terms.bias_correction(b1, step_count)
        correct_nu = 1 / _terms.bias_correction(b2, jnp.maximum(term_counts, 1))

        def one_leaf(made: Made, mu: Leaf, nu: TermLeaf, inner: Any) -> tuple[Any, ...]:
            with _named.seen(losses):
                weights, inner = _weighting.weights_from(
                    weighting,
                    made.squared_norms if weighting.reads_norms else None,
                    inner,
                    vector,
                    present,
                    **extra_args,
                )
            total, nu = _moments(made, weights, nu, b2, present)
            first = b1 * mu + (1 - b1) * total
            # Read after all terms are in, so that these were written in place.
            largest = _terms.max_terms(_terms.scale(correct_nu, nu))
            root = _terms.root(largest) + eps
            step = _terms.quotient(first * correct_mu, root).astype(mu.dtype)
            return step, first.astype(mu.dtype), nu, inner

        structure = jax.tree.structure(params)
        columns = zip(
            _term_by_term.of_each_parameter(linear, params, losses, num_terms),
            *map(structure.flatten_up_to, (state.mu, state.nu, state.weighting)),
            strict=True,
        )
        steps, mu, nu, inner = (
            structure.unflatten(column)
            for column in zip(*(one_leaf(*each) for each in columns), strict=True)
        )
        after = MaxAdamGradState(step_count, term_counts, mu, nu, inner)
        return ((losses, aux) if has_aux else losses), steps, after

    return MaxAdamGrad(init, update)


def _moments(
    made: Made,
    weights: Weights,
    nu: TermLeaf,
    b2: Scalar,
    present: Bool[Array, " K"] | None,
) -> tuple[Leaf, TermLeaf]:
    """The sum of the weighted gradients, and the second moments after them."""
    if made.gradient is None:
        grads = _terms.scale(weights, made.cotangents.astype(nu.dtype))
        grads = _terms.only_present(present, grads)
        moved = b2 * nu + (1 - b2) * (grads * grads)
        moved = _terms.keep_absent(present, moved.astype(nu.dtype), nu)
        return _terms.sum_terms(grads), moved
    gradient = made.gradient

    def body(i: jax.Array, carry: tuple[Leaf, TermLeaf]) -> tuple[Leaf, TermLeaf]:
        total, nu = carry
        old, cotangent = (
            jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False)
            for leaf in (nu, made.cotangents)
        )
        grad = weights[i].astype(nu.dtype) * gradient(cotangent)
        moved = b2 * old + (1 - b2) * (grad * grad)
        if present is not None:
            moved = jnp.where(present[i], moved, old)
            grad = jnp.where(present[i], grad, 0)
        moved = moved.astype(nu.dtype)
        return total + grad, jax.lax.dynamic_update_index_in_dim(nu, moved, i, 0)

    start = jnp.zeros(nu.shape[1:], nu.dtype)
    return jax.lax.fori_loop(0, len(nu), body, (start, nu))
