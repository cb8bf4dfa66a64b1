"""Inverse-Dirichlet weights of Maddu et al."""

import numpy as np


def inverse_dirichlet(jacobians, *, decay):
    """Weights of every step; ``jacobians`` [steps, K, P]."""
    lam, history = np.ones(jacobians.shape[1]), []
    for J in jacobians:
        std = np.array([np.sqrt(np.mean((g - g.mean()) ** 2)) for g in J])
        lam = decay * lam + (1 - decay) * std.max() / std
        history.append(lam)
    return np.array(history)
