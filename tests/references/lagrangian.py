"""Multipliers by the nuPI controller of Sohrabi et al., one constraint at a time."""

import numpy as np


def lagrangian(losses, levels, *, eta, kp, nu, rho):
    """Weights of every step, for the levels of all terms but the first."""
    steps, K = losses.shape
    history = np.ones((steps, K))
    for k in range(1, K):
        multiplier = xi = 0.0
        for t in range(steps):
            e = losses[t, k] - levels[k - 1]
            # d/dL of lambda (L - c) + rho / 2 max(0, L - c)^2
            history[t, k] = multiplier + rho * max(0.0, e)
            smoothed = nu * xi + (1 - nu) * e
            multiplier = max(0.0, multiplier + eta * (e + kp * (smoothed - xi)))
            xi = smoothed
    return history
