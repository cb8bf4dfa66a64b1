"""Gradient norms and the neural tangent kernel as jaxpi balances them."""

import numpy as np


def averaged(sizes, *, decay):
    """Weights of every step, from norms, or traces of the kernel, [steps, K]."""
    w, history = np.ones(sizes.shape[1]), []
    for size in sizes:
        hat = np.mean(size) / size
        w = decay * w + (1 - decay) * hat
        history.append(w)
    return np.array(history)


def traces(jacobians):
    """Of each term: mean over the rows of the squared length of a residual's gradient.

    ``jacobians`` is a list of matrices [rows, P].
    """
    return np.array([np.mean([row @ row for row in J]) for J in jacobians])
