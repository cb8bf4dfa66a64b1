"""Projection onto the dual cone: the nearest direction that conflicts with no term."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from multiterm_optax import _checks, _nnqp, _terms
from multiterm_optax._typing import Gramian, Weights
from multiterm_optax.weightings import _units


def shares(
    preference: Any, gramian: Gramian, present: Bool[Array, " K"] | None, name: str
) -> Weights:
    """The combination to project: the preference or the mean, absent terms 0."""
    count = gramian.shape[0]
    there = _terms.only_present(present, jnp.ones(count, gramian.dtype))
    if preference is None:
        return there / jnp.maximum(jnp.sum(there), 1)
    return there * _checks.vector(preference, "preference", name, count)


def project(
    gramian: Gramian, coefficients: Float[Array, "N K"]
) -> tuple[Float[Array, "N K"], Bool[Array, ""]]:
    r"""Coefficients of the projections of N combinations of the gradients.

    With :math:`d = \sum_j u_j g_j`, u not negative, the projection is
    :math:`\sum_j v_j g_j` for the v that minimises :math:`v^T G v` over
    :math:`v \ge u`: a combination can only gain.
    """
    gramian = jax.lax.stop_gradient(gramian)
    scaled, units, silent = _units.split(gramian)
    # In units of each gradient's length, and of each combination's largest part.
    parts = coefficients.astype(gramian.dtype) * units
    largest = jnp.max(parts, axis=1, keepdims=True)
    parts = parts / jnp.where(largest > 0, largest, 1)
    towards = -jnp.matmul(parts, scaled, precision="highest")
    # Gradients that cancel: what is left are roundings, not a direction to leave.
    rounding = jnp.matmul(jnp.abs(parts), jnp.abs(scaled), precision="highest")
    rounding = rounding * (len(units) * jnp.finfo(scaled.dtype).eps)
    towards = jnp.where(jnp.abs(towards) <= rounding, 0, towards)
    nothing = jnp.zeros_like(units)
    found = jax.vmap(_nnqp.solve, in_axes=(None, None, 0))(scaled, nothing, towards)
    gained = jnp.where(silent, 0, found.z)
    return (parts + gained) * largest / units, jnp.all(found.converged)
