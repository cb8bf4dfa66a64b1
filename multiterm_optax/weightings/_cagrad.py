# Longer than most: the dual is solved exactly, by a search that certifies its result.
"""CAGrad: the worst term's best direction near the mean gradient."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _bracketing, _checks, _nnqp, _weighting
from multiterm_optax._typing import Gramian, Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _units


class CAGradState(NamedTuple):
    """State of :func:`cagrad`.

    Attributes:
      converged: Whether the last step's weights meet the optimality conditions.
    """

    converged: jax.Array


def cagrad(c: Scalar = 0.5, rescale: bool | Literal["linear"] = False) -> Weighting:
    r"""Conflict-averse gradients: the best direction for the worst term, near the mean.

    With the mean gradient :math:`g_0 = \frac1K \sum_i g_i`, the direction is

    .. math::

      d = \arg\max_d \min_i \, g_i \cdot d
        \qquad\text{with } \lVert d - g_0 \rVert \le c \lVert g_0 \rVert .

    The weights need not sum to 1: ``c = 0`` gives :func:`equal`, the mean of the
    losses, and terms that agree give :math:`(1+c) g_0`. Terms whose gradient is zero
    count in the mean and are left out of the minimum. With one term the weight is 1.

    Args:
      c: Radius of the ball relative to :math:`\lVert g_0 \rVert`, in [0, inf). The
        paper proves convergence to a minimum of the mean for :math:`c < 1`.
      rescale: ``False``: as above, the paper's Alg. 1. ``True``: divided by
        :math:`1 + c^2`, the default of the authors' code. ``"linear"``: divided by
        :math:`1 + c`, another choice in that code.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K], not
      negative.

    Raises:
      ValueError: ``c`` is negative, or ``rescale`` is not one of the choices.

    Source:
      Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS
      2021, Eq. 3 and Alg. 1; ``c = 0.5`` is the default of the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import cagrad
      >>> weighting = cagrad(c=0.5)
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> weights, state = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 3) for w in weights], bool(state.converged)
      ([1.059, 0.5], True)
    """
    name = "cagrad"
    _checks.non_negative(c, "c", name)
    _checks.one_of(rescale, "rescale", name, (False, True, "linear"))

    def init(num_terms: int) -> CAGradState:
        del num_terms
        return CAGradState(converged=jnp.ones([], jnp.bool_))

    def find(problem: Problem, state: CAGradState) -> tuple[Weights, CAGradState]:
        gramian = problem.gramian
        radius = jnp.asarray(c, gramian.dtype)
        if problem.num_terms == 1:
            return jnp.ones_like(gramian[0]), state
        weights, converged = _conflict_averse(gramian, radius, problem.num_present)
        if rescale == "linear":
            weights = weights / (1 + radius)
        elif rescale:
            weights = weights / (1 + radius**2)
        if problem.present is not None:
            alone = problem.num_present == 1
            weights = jnp.where(alone, 1, weights)
            converged = alone | converged
        return weights, CAGradState(converged)

    return _weighting.method(name, init, find, reads_gramian=True)


def _conflict_averse(
    gramian: Gramian, c: jax.Array, num_present: Scalar
) -> tuple[Weights, jax.Array]:
    # A present term whose gradient is zero counts in the mean, as num_present says.
    scaled, units, zero = _units.split(gramian)
    longest = jnp.max(jnp.where(zero, 0, units))
    lengths = units / jnp.where(longest > 0, longest, 1)
    summed = jnp.where(zero, 0, lengths)
    along = _dot(scaled, summed) / num_present
    mean = jnp.sqrt(jnp.maximum(summed @ along / num_present, 0))
    radius = c * mean
    no_radius = radius == 0
    radius = jnp.where(no_radius, 1, radius)
    linear = jnp.where(zero, 1, jnp.clip(along, -mean, mean) / radius)
    shortest = jnp.min(jnp.where(zero, jnp.inf, lengths))
    inverse = jnp.where(zero, 0, shortest / lengths)
    z, converged = _multipliers(scaled, linear, inverse)
    weights = 1 / num_present + jnp.where(no_radius | zero, 0, z * radius / lengths)
    return weights.astype(gramian.dtype), no_radius | converged


def _multipliers(
    scaled: Gramian, linear: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Finds z >= 0 with a step sum(z_i u_i) of length <= 1, and whether it is optimal.

    The u are the gradients in their units and ``scaled`` is their gramian. ``linear``
    are their dot products with g_0 in units of the radius. ``inverse`` are the
    reciprocal units: at most 1, and 0 for zero gradients.

    For a worst improvement mu, z minimises z.C.z / 2 - (mu inverse - linear).z with C
    the gramian, and its step grows with mu. But no mu > 0 has a solution if 0 is in the
    hull. The line mu = x - sum(z * inverse) meets the curve of solutions once for every
    x, so x is searched in place of mu.
    """

    def solve(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # (C z)_i is at least minus the step. Below -2 a bound cannot be active where
        # the step is right, and a huge bound would cost the others their digits.
        q = jnp.maximum(x * inverse - linear, -2)
        size = jnp.maximum(jnp.max(q), 1)
        z = size * _nnqp.solve(scaled, inverse, q / size).z
        return _length(scaled, z) - 1, z

    nonzero = inverse > 0
    units = 1 / jnp.where(nonzero, inverse, 1)
    low = jnp.min(jnp.where(nonzero, linear * units, jnp.inf))
    low = jnp.where(jnp.any(nonzero), low, 0)
    # A solution always exists up to mu = 0.
    nearest = _project(scaled, linear)
    apart = _length(scaled, nearest)
    highest = jnp.min(jnp.where(nonzero, (linear + 1) * units, jnp.inf))
    # A multiplier beyond this cap belongs to a g_w below the gramian's resolution.
    cap = min(0.1 * jnp.finfo(scaled.dtype).eps ** -0.5, 1e5)
    highest = jnp.where(jnp.any(nonzero), highest, 0) + cap
    high = jnp.where(apart < 1, highest, 2 * (nearest @ inverse))

    # Where nothing is added to g_0 the step is shorter than 1.
    below = jnp.full_like(low, -1)
    root = _bracketing.search(solve, low, below, jnp.zeros_like(nearest), high)
    length = _length(scaled, root.aux)
    stationary = ~root.bracketed & (apart < 1)
    z = jnp.where(stationary, nearest, root.aux / jnp.where(length > 0, length, 1))
    return z, _optimal(scaled, linear, inverse, z, stationary)


def _project(scaled: Gramian, linear: jax.Array) -> jax.Array:
    """The multipliers of g_0's projection on the dual cone."""
    conflict = jnp.max(-linear)
    size = jnp.where(conflict > 0, conflict, 1)
    # In units of the conflict. A bound far from active would cost the others digits.
    q = jnp.where(conflict > 0, jnp.maximum(-linear / size, -1000), -1)
    z = size * _nnqp.solve(scaled, jnp.zeros_like(q), q).z
    return jnp.where(conflict > 0, z, 0)


def _optimal(
    scaled: Gramian,
    linear: jax.Array,
    inverse: jax.Array,
    z: jax.Array,
    stationary: jax.Array,
) -> jax.Array:
    """Whether every g_i.d is at least mu, and equal to it where z_i > 0."""
    along = linear + _dot(scaled, z)
    total = z @ inverse
    worst = z @ along / jnp.where(total > 0, total, 1)
    slack = along - jnp.where(stationary, 0, worst) * inverse
    bound = jnp.sqrt(jnp.finfo(z.dtype).eps) * (1 + jnp.max(jnp.abs(linear)))
    largest = jnp.max(z)
    return (jnp.min(slack) >= -bound) & (jnp.max(z * slack) <= bound * largest)


def _length(scaled: Gramian, z: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(z @ _dot(scaled, z), 0))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
