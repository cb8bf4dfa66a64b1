"""Weights that bring every term's size to the mean of all, averaged over the steps."""

import jax
import jax.numpy as jnp

from multiterm_optax import _averages
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem


def step(problem: Problem, sizes: jax.Array, old: Weights, decay: Scalar) -> Weights:
    """Averages the ratios of the present terms' mean size to each term's own.

    The weight of a term of size zero stays, and so do all if a size is not finite.
    """
    mean = problem.mean(sizes)
    ratios = _averages.ratio(mean, sizes)
    known = (sizes > 0) & jnp.isfinite(mean)
    return _averages.toward(decay, ratios, old, known)
