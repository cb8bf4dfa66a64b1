"""ConFIG: one direction at the same angle, or at chosen angles, to all gradients."""

from typing import Any

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Gramian, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _units


def config(preference: Any = None) -> Weighting:
    r"""Conflict-free inverse gradients: equal cosines with all gradients.

    With the unit gradients :math:`u_i = g_i / \lVert g_i \rVert` as the rows of
    :math:`U` and a preference :math:`p`,

    .. math::

      x = \frac{U^+ p}{\lVert U^+ p \rVert}, \qquad
      d = \Bigl( \sum_i g_i \cdot x \Bigr) \, x .

    :math:`U^+` is the pseudo-inverse: where the gradients are linearly independent,
    :math:`u_i \cdot x` is proportional to :math:`p_i`, and the direction conflicts with
    no term. With two terms, :math:`x` is the centre of the dual cone. If the
    gradients are dependent, the cosines come as near to this as they can, and nothing
    is guaranteed; opposed gradients alone give :math:`d = 0`. Gradients that are zero
    are left out.

    Args:
      preference: :math:`p`, K numbers, not negative; only their ratios count. ``None``:
        equal.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian. The weights [K] give
      :math:`d` and may be negative. It is stateless. With one term the weight is 1.

    Raises:
      ValueError: ``preference`` is negative or does not have K values.

    Source:
      Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed
      Neural Networks", ICLR 2025, Eq. 2 and 3; the preference is taken from their code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import config
      >>> weighting = config()
      >>> gradients = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
      >>> weights, _ = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(x), 4) for x in weights @ gradients]
      [0.1588, 2.0706, 2.0706]
    """
    name = "config"
    preferred = _checks.preference(preference, name)

    def init(num_terms: int) -> optax.EmptyState:
        preferred(num_terms)
        return optax.EmptyState()

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        gramian = problem.gramian
        ones = jnp.ones_like(problem.squared_norms)
        wanted = preferred(problem.num_terms, ones)
        wanted = problem.only_present(wanted.astype(gramian.dtype))
        weights = _weights(gramian, wanted)
        # With one term alone, the weight must be free of rounding.
        alone = jnp.asarray(problem.num_present == 1)
        return jnp.where(alone, (wanted > 0).astype(weights.dtype), weights), state

    return _weighting.method(name, init, find, reads_gramian=True)


def _weights(gramian: Gramian, wanted: Weights) -> Weights:
    scaled, units, silent = _units.split(gramian)
    lengths = jnp.sqrt(jnp.diagonal(scaled))
    cosines = _units.divided(scaled, lengths)
    lengths = jnp.where(silent, 0, lengths * units)
    largest = jnp.max(wanted)
    wanted = jnp.where(silent, 0, wanted) / jnp.where(largest > 0, largest, 1)

    values, vectors = jnp.linalg.eigh(cosines)
    # Smaller eigenvalues are zeros with rounding errors.
    rounding = 8 * len(values) * float(jnp.finfo(values.dtype).eps)
    known = values > rounding
    inverse = jnp.where(known, 1 / jnp.where(known, values, 1), 0)

    def parts(right: Weights) -> Weights:
        return jnp.where(known, _dot(vectors.T, right), 0)

    along = parts(wanted)
    # U x |U^+ p|: the wanted cosines, or what dependent gradients can have of them.
    reached = _dot(vectors, along)
    inverted = _dot(vectors, inverse * along)
    residual = parts(wanted - _dot(cosines, inverted))
    inverted = inverted + _dot(vectors, inverse * residual)  # refined once
    squared = inverted @ reached  # |U^+ p|^2
    # Gradients that cancel entirely have only rounding errors in place of a direction.
    nowhere = (jnp.max(jnp.abs(along)) <= rounding) | (squared <= 0)
    longest = jnp.max(lengths)
    relative = lengths / jnp.where(longest > 0, longest, 1)
    factor = relative @ reached / jnp.where(nowhere, 1, squared)
    nothing = nowhere | silent
    return jnp.where(nothing, 0, factor * inverted / jnp.where(silent, 1, relative))


def _dot(a: Gramian, b: Weights) -> Weights:
    return jnp.matmul(a, b, precision="highest")
