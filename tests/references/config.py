"""ConFIG, Eq. 2 and 3 of Liu, Chu and Thuerey, on the gradients themselves."""

import numpy as np


def direction(J, preference=None):
    """By the singular values of the unit gradients, less those that are roundings."""
    J = np.asarray(J, np.float64)
    norms = np.linalg.norm(J, axis=1, keepdims=True)
    U = np.divide(J, norms, out=np.zeros_like(J), where=norms > 0)
    p = np.ones(len(J)) if preference is None else np.asarray(preference, np.float64)
    g_v = np.linalg.pinv(U, rcond=1e-6) @ p
    size = np.linalg.norm(g_v)
    if size < 1e-12:  # opposed gradients
        return np.zeros(J.shape[1])
    g_u = g_v / size
    return sum(g @ g_u for g in J) * g_u
