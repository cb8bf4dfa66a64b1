"""Sener and Koltun's solver for MGDA: Frank-Wolfe on the gramian, in float64."""

import numpy as np


def frank_wolfe(rows, steps):
    """Weights after so many exact line searches, from the shortest gradient."""
    gramian = np.asarray(rows, np.float64) @ np.asarray(rows, np.float64).T
    weights = np.eye(len(gramian))[np.argmin(np.diagonal(gramian))]
    for _ in range(steps):
        along = gramian @ weights
        best = int(np.argmin(along))
        curvature = weights @ along - 2 * along[best] + gramian[best, best]
        if curvature <= 0:
            break
        length = np.clip((weights @ along - along[best]) / curvature, 0, 1)
        weights = (1 - length) * weights + length * np.eye(len(weights))[best]
    return weights
