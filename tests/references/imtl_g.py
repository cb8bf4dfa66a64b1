"""IMTL-G, the closed form of Liu et al., as printed."""

import numpy as np


def weights(J):
    """Weights that sum to 1."""
    J = np.asarray(J, np.float64)
    if len(J) == 1:
        return np.ones(1)
    U = J / np.linalg.norm(J, axis=1)[:, None]
    D = J[0] - J[1:]
    V = U[0] - U[1:]
    rest = np.linalg.solve((D @ V.T).T, V @ J[0])
    return np.concatenate([[1 - rest.sum()], rest])
