"""Aligned-MTL: the gradients made orthogonal and of one length, then combined."""

from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from multiterm_optax import _checks, _linear, _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _jacobi, _units


def aligned_mtl(
    scale: Literal["min", "median", "rmse"] = "min", preference: Any = None
) -> Weighting:
    r"""Aligns the principal components of the gradients.

    With the eigenvectors and eigenvalues :math:`G = V \Lambda V^T`,

    .. math::

      w = \sqrt{s} \; V \Lambda^{-1/2} V^T p, \qquad d = \sum_i w_i g_i .

    The gradients are replaced by the nearest ones that are orthogonal and have one
    length, :math:`\sqrt{s}`, and these are combined with the shares :math:`p`. Weights
    may be negative, and :math:`d` may conflict with one of the original gradients.

    Eigenvalues that are zero to within the rounding of the cosines are left out, of the
    scale as well; each term without a gradient has one of them, and has the weight 0.
    Long gradients do not cost short ones any digits.

    Args:
      scale: :math:`s`, from the remaining eigenvalues: ``"min"``, the smallest, as in
        the paper; ``"median"``, for an even number the mean of the middle two;
        ``"rmse"``, the mean.
      preference: :math:`p`, K weights, not negative. ``None``: 1 / K each, where K is
        the number of present terms. The authors' code uses 1 each.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gramian; weights [K].

    Raises:
      ValueError: ``scale`` is not one of the choices, or ``preference`` is negative or
        does not have K values.

    Source:
      Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR
      2023, Alg. 1; ``"median"`` and ``"rmse"`` are choices of the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import aligned_mtl
      >>> weighting = aligned_mtl()
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 4.0]])
      >>> weights, _ = weighting.update(gradients @ gradients.T, weighting.init(2))
      >>> [round(float(w), 6) for w in weights]
      [0.5, 0.125]
    """
    name = "aligned_mtl"
    _checks.one_of(scale, "scale", name, ("min", "median", "rmse"))
    preferred = _checks.preference(preference, name)

    def init(num_terms: int) -> optax.EmptyState:
        preferred(num_terms)
        return optax.EmptyState()

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        gramian = problem.gramian
        equal = problem.equal_shares(gramian.dtype)
        shares = preferred(problem.num_terms, equal).astype(gramian.dtype)
        shares = problem.only_present(shares)
        cosines, lengths, silent = _units.cosines(gramian)
        # Relative to the shortest, so that nothing over- or underflows.
        shortest = jnp.min(jnp.where(silent, jnp.inf, lengths))
        lengths = jnp.where(silent, 0, lengths / shortest)
        found = _jacobi.decompose(cosines, lengths)
        shared = _linear.dot(_linear.dot(found.vectors, shares), found.parts)
        weights = _scale(found, scale) * shared / jnp.where(silent, 1, lengths)
        return jnp.where(silent, 0, weights), state

    return _weighting.method(name, init, find, reads_gramian=True)


def _scale(found: _jacobi.Components, scale: str) -> Float[Array, ""]:
    """The root of the scale."""
    roots, kept = found.roots, found.kept
    number = jnp.maximum(jnp.sum(kept), 1)
    if scale == "rmse":
        longest = jnp.maximum(jnp.max(roots), 1)
        total = jnp.sum((roots / longest) ** 2)
        return longest * jnp.sqrt(total / number.astype(roots.dtype))
    ordered = jnp.sort(jnp.where(kept, roots, jnp.inf))
    if scale == "min":
        return jnp.where(jnp.any(kept), ordered[0], 0)
    middle = ordered[jnp.stack([(number - 1) // 2, number // 2])]
    middle = jnp.where(jnp.any(kept), middle, 0)
    return jnp.hypot(middle[0], middle[1]) / 2**0.5
