"""FAMO: weights that make all losses fall at one rate, without their gradients."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses

_B1, _B2, _EPS = 0.9, 0.999, 1e-8  # Adam's own


class FAMOState(NamedTuple):
    """State of :func:`famo`.

    Attributes:
      logits: The logits [K] of the next step.
      mean: Adam's first moment of their gradient [K].
      square: Its second moment [K].
      before: The losses' magnitudes in the last step [K]; 0 where there is none.
      moved: How often each logit has moved [K], int32.
    """

    logits: jax.Array
    mean: jax.Array
    square: jax.Array
    before: jax.Array
    moved: jax.Array


def famo(learning_rate: Scalar = 0.025, weight_decay: Scalar = 0.001) -> Weighting:
    r"""Fast adaptive multitask optimization: all losses fall at the same rate.

    .. math::

      w_i = \frac{z_i / L_i}{\sum_j z_j / L_j}, \qquad z = \operatorname{softmax}(\xi)

    After a step from :math:`L` to :math:`L'`, the logits :math:`\xi` descend, by Adam,

    .. math::

      \left( \frac{\partial z}{\partial \xi} \right)^\top \delta + \gamma \xi,
      \qquad \delta_i = \log L_i - \log L_i' .

    This happens in the next step, where :math:`L'` is the extra argument
    ``losses_after`` of ``update``, the losses of the *last* batch *after* that step, or
    else ``losses``.

    Args:
      learning_rate: Adam's learning rate, for the logits.
      weight_decay: :math:`\gamma`, the L2 penalty on the logits.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; weights [K] with
      sum 1. A loss counts by its magnitude; if it is 0 or not finite, it has the weight
      0 and changes no logit.

    Raises:
      ValueError: A hyperparameter is not finite, or losses are missing.

    Source:
      Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023, Alg. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import famo
      >>> weighting = famo()
      >>> state = weighting.init(2)
      >>> for losses in ([1.0, 4.0], [1.0, 3.0]):  # the second has fallen
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      >>> [round(float(z), 3) for z in state.logits]
      [0.025, -0.025]
    """
    name = "famo"
    _checks.in_range(
        learning_rate, "learning_rate", name, open_low=True, open_high=True
    )
    _checks.in_range(weight_decay, "weight_decay", name, open_low=True, open_high=True)

    def init(num_terms: int) -> FAMOState:
        zeros = (jnp.zeros((num_terms,), jnp.result_type(float)) for _ in range(4))
        return FAMOState(*zeros, moved=jnp.zeros((num_terms,), jnp.int32))

    def find(problem: Problem, state: FAMOState) -> tuple[Weights, FAMOState]:
        sizes = jnp.abs(problem.losses)
        after = _after(problem, name, sizes)
        known = problem.only_present(_usable(state.before) & _usable(after))
        state = _moved(problem, state, after, known, learning_rate, weight_decay)

        usable = problem.only_present(_usable(sizes))
        smallest = jnp.min(sizes, where=usable, initial=jnp.inf)
        inverse = jnp.where(usable, smallest / jnp.where(usable, sizes, 1), 0)
        weights = _losses.softmax(problem, state.logits) * inverse
        weights = _losses.summing_to(problem, weights, 1.0)
        return weights, state._replace(before=jnp.where(_usable(sizes), sizes, 0))

    return _weighting.method(
        name,
        init,
        find,
        reads_losses=True,
        by_term=FAMOState._fields,
        extra_args=("losses_after",),
    )


def _usable(sizes: jax.Array) -> jax.Array:
    """Which sizes have a logarithm and are not so small that XLA may make them 0."""
    return (sizes >= jnp.finfo(sizes.dtype).tiny) & jnp.isfinite(sizes)


def _after(problem: Problem, name: str, sizes: jax.Array) -> jax.Array:
    """The magnitudes after the last step, where they are given, or the present ones."""
    given = problem.extra_args.get("losses_after")
    if given is None:
        return sizes
    found: Any = _checks.losses(given, f"{name}: losses_after", problem.num_terms)
    return jnp.abs(jax.lax.stop_gradient(found)).astype(sizes.dtype)


def _moved(
    problem: Problem,
    state: FAMOState,
    after: jax.Array,
    known: jax.Array,
    learning_rate: Any,
    weight_decay: Any,
) -> FAMOState:
    """The state after Adam's step on the logits of the terms whose change is known."""
    before, after = (jnp.where(known, one, 1) for one in (state.before, after))
    # This is accurate to the last digit even where the two are close to each other.
    ratio = jnp.abs(before - after) / jnp.minimum(before, after)
    delta = jnp.sign(before - after) * jnp.log1p(_losses.bounded(ratio))

    shares = _losses.softmax(problem._replace(present=known), state.logits)
    gradient = shares * (delta - jnp.sum(shares * delta)) + weight_decay * state.logits
    mean = _B1 * state.mean + (1 - _B1) * gradient
    square = _B2 * state.square + (1 - _B2) * gradient * gradient
    moved = jnp.asarray(optax.safe_increment(state.moved))
    steps = moved.astype(mean.dtype)
    first, second = (-jnp.expm1(steps * math.log(b)) for b in (_B1, _B2))
    step = mean / first / (jnp.sqrt(square / second) + _EPS)
    logits = (state.logits - learning_rate * step).astype(mean.dtype)
    new = FAMOState(logits, mean, square.astype(mean.dtype), state.before, moved)
    return jax.tree.map(lambda a, b: jnp.where(known, a, b), new, state)
