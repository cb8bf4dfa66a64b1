"""MGDA: the shortest vector in the convex hull of the gradients."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _nnqp, _terms, _weighting
from multiterm_optax._typing import Gramian, Losses, Weights
from multiterm_optax._weighting import Weighting
from multiterm_optax.weightings import _absent, _units

Normalization = Literal["l2", "loss", "loss+"]


class MGDAState(NamedTuple):
    """State of :func:`mgda`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
    """

    converged: jax.Array


class InexactMGDAState(NamedTuple):
    """State of :func:`inexact_mgda`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
      ready: Whether the last step is to be taken.
      skipped: Number of steps skipped so far, int32.
    """

    converged: jax.Array
    ready: jax.Array
    skipped: jax.Array


def mgda(
    normalization: Normalization | None = None,
    *,
    solver: Literal["exact", "frank-wolfe"] = "exact",
    iterations: int = 250,
) -> Weighting:
    r"""Multiple-gradient descent: weights of the min-norm point.

    .. math::

      w = \arg\min_{\alpha \ge 0, \, \sum_i \alpha_i = 1}
        \Bigl\lVert \sum_i \alpha_i g_i \Bigr\rVert^2
        = \arg\min \alpha^T G \alpha

    The direction :math:`d = \sum_i w_i g_i` conflicts with no term,
    :math:`g_i \cdot d \ge \lVert d \rVert^2`, and vanishes where the parameters are
    Pareto stationary; a term whose gradient is zero makes it vanish, too. Two terms
    are solved in closed form, more by an interior point method on a program scaled to
    unit gradients, so that the weights are the same when all gradients are multiplied
    by a constant and gradients of very different size do no harm. The weights need
    not be unique; the direction is, and in float32 it is found to about 1e-7 of the
    longest gradient over the spread of the gradients relative to their length.

    Args:
      normalization: Finds the weights for scaled gradients instead: ``"l2"``
        :math:`g_i / \lVert g_i \rVert`, ``"loss"`` :math:`g_i / L_i`, ``"loss+"``
        :math:`g_i / (L_i \lVert g_i \rVert)`. As in the code of Sener and Koltun, the
        weights then multiply the gradients as they are; the promise of no conflict is
        lost, and where two gradients are parallel the direction is not unique. Zero
        gradients and losses that are not positive are divided by nothing.
      solver: ``"exact"``, or ``"frank-wolfe"``, the papers' iteration, to compare with:
        it starts from the shortest gradient and converges sublinearly.
      iterations: The most steps of Frank-Wolfe, at least 1. Where they do not suffice
        (a duality gap over the square root of the dtype's resolution, relative to the
        longest gradient squared) ``converged`` is False.

    Returns:
      A :class:`multiterm_optax.Weighting`; the weights [K] sum to 1. It reads the
      gramian, and with ``"loss"`` and ``"loss+"`` the losses.

    Raises:
      ValueError: ``normalization`` or ``solver`` is not one of the choices,
        ``iterations`` is not positive, or losses are missing.

    Source:
      Desideri, "Multiple-gradient descent algorithm (MGDA) for multiobjective
      optimization", 2012; Sener and Koltun, "Multi-Task Learning as Multi-Objective
      Optimization", 2018, Eq. 3; normalisations of their code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mgda
      >>> weighting = mgda()
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights], bool(state.converged)
      ([0.8, 0.2], True)
    """
    name = "mgda"
    _checks.one_of(normalization, "normalization", name, (None, "l2", "loss", "loss+"))
    _checks.one_of(solver, "solver", name, ("exact", "frank-wolfe"))
    _checks.in_range(iterations, "iterations", name, low=1.0)

    def init(num_terms: int) -> MGDAState:
        del num_terms
        return MGDAState(converged=jnp.ones([], jnp.bool_))

    def update(
        gramian: Gramian,
        state: MGDAState,
        *,
        losses: Losses | None = None,
        present: Bool[Array, " K"] | None = None,
        **extra_args: Any,
    ) -> tuple[Weights, MGDAState]:
        del state, extra_args
        present = _checks.present(present, name, gramian.shape[0])
        gramian = _weighting.pairs_present(present, gramian)
        normalized = _normalized(gramian, losses, normalization)
        if solver == "exact":
            weights, converged = _min_norm(normalized, present)
        else:
            weights, converged = _frank_wolfe(normalized, iterations, present)
        return _terms.only_present(present, weights), MGDAState(converged)

    by_loss = normalization in ("loss", "loss+")
    return Weighting(init, update, reads_losses=by_loss)


def inexact_mgda(eps: Any, normalization: Normalization | None = None) -> Weighting:
    r"""MGDA that skips the steps it cannot trust.

    With the direction :math:`d` of :func:`mgda` and a bound :math:`\epsilon_i` on the
    error of each term's gradient, the step is taken only if, for every term,

    .. math:: g_i \cdot d \ge \epsilon_i \lVert d \rVert ,

    that is, if it descends for every gradient within the bounds (up to the rounding of
    the products). At the exact optimum
    this asks for :math:`\lVert d \rVert \ge \epsilon_i` of every term that has a
    weight: training stops by itself once :math:`\lVert d \rVert` falls below the
    bounds.

    A skipped step has all weights zero. Inside :func:`multiterm_optax.weighted` it
    touches neither parameters nor the inner optimizer's state; inside a plain
    :func:`multiterm_optax.reweight` a later optimizer sees zero gradients. A step from
    which all terms are absent is skipped.

    Args:
      eps: :math:`\epsilon`, a number or an array [K], not negative.
      normalization: As in :func:`mgda`. The test is made on the gradients as they are.

    Returns:
      A :class:`multiterm_optax.Weighting` whose state tells ``ready`` and counts
      ``skipped`` steps.

    Raises:
      ValueError: ``eps`` is negative or has not K values.

    Source:
      Aygar, "Pareto-Efficient Training of Multi-Task Deep Networks", thesis, 2019, 2.2,
      Eq. 2.9 to 2.11, after Peitz and Dellnitz, 2018. The printed Eq. 2.12 divides by
      the gradient's norm where its square is right; the form here needs no division.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import inexact_mgda
      >>> weighting = inexact_mgda(eps=1.0)
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # d = [0.5, 0.5]
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> bool(state.ready), int(state.skipped), weights.tolist()
      (False, 1, [0.0, 0.0])
    """
    name = "inexact_mgda"
    _checks.non_negative(eps, "eps", name, array=True)
    exact = mgda(normalization)

    def init(num_terms: int) -> InexactMGDAState:
        _per_term(eps, "eps", name, num_terms)
        return InexactMGDAState(
            converged=jnp.ones([], jnp.bool_),
            ready=jnp.ones([], jnp.bool_),
            skipped=jnp.zeros([], jnp.int32),
        )

    def update(
        gramian: Gramian,
        state: InexactMGDAState,
        *,
        losses: Losses | None = None,
        present: Bool[Array, " K"] | None = None,
        **extra_args: Any,
    ) -> tuple[Weights, InexactMGDAState]:
        del extra_args
        present = _checks.present(present, name, gramian.shape[0])
        gramian = _weighting.pairs_present(present, gramian)
        weights, found = exact.update(
            gramian, MGDAState(state.converged), losses=losses, present=present
        )
        bounds = _per_term(eps, "eps", name, gramian.shape[0])
        along = jnp.matmul(gramian, weights, precision="highest")
        length = jnp.sqrt(jnp.maximum(weights @ along, 0))
        # A product that is zero but for its rounding does not conflict.
        norms = jnp.sqrt(jnp.diagonal(gramian))
        count = _absent.number(present, gramian.shape[0])
        size = count * jnp.finfo(gramian.dtype).eps
        rounding = size * norms * (weights @ norms)
        descends = along + rounding >= bounds * length
        if present is None:
            ready = jnp.all(descends)
        else:
            ready = jnp.all(descends | ~present) & jnp.any(present)
        skipped = state.skipped + jnp.where(ready, 0, 1).astype(jnp.int32)
        return jnp.where(ready, weights, 0), InexactMGDAState(
            found.converged, ready, skipped
        )

    return Weighting(init, update, reads_losses=exact.reads_losses)


def _per_term(eps: Any, argument: str, name: str, num_terms: int) -> jax.Array:
    array = jnp.asarray(eps)
    if array.shape not in ((), (num_terms,)):
        raise ValueError(
            f"{name}: {argument} must be a number or have shape ({num_terms},), found "
            f"shape {array.shape}."
        )
    return jnp.broadcast_to(array, (num_terms,))


def _normalized(
    gramian: Gramian, losses: Losses | None, normalization: Normalization | None
) -> Gramian:
    if normalization is None:
        return gramian
    norms = jnp.sqrt(jnp.diagonal(gramian))
    divisors = jnp.ones_like(norms)
    if normalization in ("l2", "loss+"):
        divisors = divisors * jnp.where(norms > 0, norms, 1)
    if normalization in ("loss", "loss+"):
        if losses is None:
            raise ValueError(
                f"mgda: normalization={normalization!r} needs losses, found none."
            )
        divisors = divisors * jnp.where(losses > 0, losses, 1)
    return gramian / divisors[:, None] / divisors[None, :]


def _min_norm(
    gramian: Gramian, present: Bool[Array, " K"] | None
) -> tuple[Weights, jax.Array]:
    num_terms = gramian.shape[0]
    if num_terms == 1:
        return jnp.ones_like(gramian[0]), jnp.isfinite(gramian[0, 0])
    # In units of about each gradient's length nothing over- or underflows.
    scaled, units, silent = _units.split(gramian)
    shortest = jnp.min(jnp.where(silent, jnp.inf, units))
    inverse = jnp.where(jnp.all(silent), 1, shortest) / units
    if present is not None:
        silent = silent & present  # an absent gradient is no zero gradient
    if num_terms == 2:
        weights, converged = _closed_form(scaled, inverse)
        if present is not None:
            weights = jnp.where(jnp.all(present), weights, present)
    else:
        weights, converged = _by_program(scaled, inverse, present)
    # A zero gradient is itself the shortest vector of the hull.
    zero = silent / jnp.maximum(jnp.sum(silent), 1).astype(gramian.dtype)
    return (
        jnp.where(jnp.any(silent), zero, weights),
        (jnp.any(silent) | converged) & jnp.all(jnp.isfinite(gramian)),
    )


def _closed_form(scaled: Gramian, inverse: Weights) -> tuple[Weights, jax.Array]:
    # Both gradients in units of the longer one's.
    shrink = jnp.min(inverse) / inverse
    relative = scaled * shrink[:, None] * shrink[None, :]
    # Each weight from its own difference: as one minus the other, that of a gradient
    # many times longer would be lost, and with it what undoes the conflict.
    parts = jnp.diagonal(relative)[::-1] - relative[0, 1]
    apart = jnp.sum(parts)
    weights = jnp.clip(parts / jnp.where(apart > 0, apart, 1), 0, 1)
    return jnp.where(apart > 0, weights, 0.5), jnp.ones([], jnp.bool_)


def _by_program(
    scaled: Gramian, inverse: Weights, present: Bool[Array, " K"] | None
) -> tuple[Weights, jax.Array]:
    # min |sum z_i u_i|^2 + (b.z - 1)^2 over z >= 0, for gradients u in their units
    # and b = 1 / units: its optimality conditions are those of the simplex up to the
    # sum of w.
    if present is None:
        solution = _nnqp.solve(scaled, inverse, inverse)
        weights = solution.z * inverse
        return weights / jnp.sum(weights), solution.converged
    # An absent gradient is apart from the others, and its multiplier at zero, clearly.
    inverse = _terms.only_present(present, inverse)
    solution = _nnqp.solve(scaled, inverse, jnp.where(present, inverse, -1))
    weights = solution.z * inverse
    nobody = ~jnp.any(present)
    return weights / jnp.where(nobody, 1, jnp.sum(weights)), nobody | solution.converged


def _frank_wolfe(
    gramian: Gramian, iterations: int, present: Bool[Array, " K"] | None
) -> tuple[Weights, jax.Array]:
    gramian = jax.lax.stop_gradient(gramian)

    def smallest(values: jax.Array) -> jax.Array:
        if present is not None:
            values = jnp.where(present, values, jnp.inf)
        return jnp.argmin(values)

    squares = jnp.diagonal(gramian)
    longest = jnp.max(squares)
    scaled = gramian / jnp.where(longest > 0, longest, 1)
    enough = jnp.sqrt(jnp.finfo(gramian.dtype).eps)

    def gap(weights: Weights) -> tuple[Weights, jax.Array, jax.Array]:
        along = jnp.matmul(scaled, weights, precision="highest")
        best = smallest(along)
        return along, best, weights @ along - along[best]

    def unfinished(carry: tuple[Weights, jax.Array]) -> jax.Array:
        weights, step = carry
        return (gap(weights)[2] > enough) & (step < iterations)

    def body(carry: tuple[Weights, jax.Array]) -> tuple[Weights, jax.Array]:
        weights, step = carry
        along, best, towards = gap(weights)
        # The exact minimum on the line to the best vertex.
        curvature = weights @ along - 2 * along[best] + scaled[best, best]
        length = jnp.clip(towards / jnp.where(curvature > 0, curvature, 1), 0, 1)
        vertex = jnp.arange(len(weights)) == best
        return (1 - length) * weights + length * vertex, step + 1

    first = (jnp.arange(len(squares)) == smallest(squares)).astype(gramian.dtype)
    weights, _ = jax.lax.while_loop(unfinished, body, (first, jnp.zeros([], jnp.int32)))
    return weights, gap(weights)[2] <= enough
