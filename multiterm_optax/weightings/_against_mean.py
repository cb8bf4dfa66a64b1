"""Weights that bring every term's size to the mean of all, averaged over the steps."""

import jax
import jax.numpy as jnp

from multiterm_optax import _averages
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem

# Ratios of two sizes are capped, so that their products with gradients stay finite.
LARGEST = 1e30


def step(problem: Problem, sizes: jax.Array, old: Weights, decay: Scalar) -> Weights:
    """Averages the ratios of the present terms' mean size to each term's own.

    The weight of a term of size zero stays, and so do all if a size is not finite.
    """
    mean = problem.mean(sizes)
    ratios = jnp.minimum(mean / jnp.where(sizes > 0, sizes, 1), LARGEST)
    known = (sizes > 0) & jnp.isfinite(mean)
    return _averages.toward(decay, ratios, old, known)
