"""Weights from the sizes of the terms, their losses or their gradients."""

import jax
import jax.numpy as jnp

from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem
from multiterm_optax.weightings import _losses


def inverse(problem: Problem, sizes: jax.Array) -> Weights:
    """The inverse sizes, scaled to a geometric mean of 1 over the present terms.

    A term of size zero has the weight 1 and is left out of the mean.
    """
    known = problem.only_present(sizes > 0)
    # Powers of two are split off and summed as integers, so that no ratio of two
    # weights loses digits to the logarithm of a size that is far from 1.
    fractions, exponents = jnp.frexp(jnp.where(known, sizes, 1))
    exponents = jnp.where(known, exponents, 0)
    count = jnp.maximum(jnp.sum(known), 1)
    middle = jnp.sum(exponents) // count
    left = (jnp.sum(exponents) - middle * count).astype(fractions.dtype)
    logs = left + jnp.sum(jnp.where(known, jnp.log2(fractions), 0))
    scale = jnp.exp2(logs / count.astype(logs.dtype))
    weights = _losses.bounded(jnp.ldexp(scale / fractions, middle - exponents))
    return jnp.where(known & (count > 1), weights, 1).astype(sizes.dtype)
