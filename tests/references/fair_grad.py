"""FairGrad of Ban and Ji, over directions and not over weights.

With w_i = p_i (g_i.d)^-alpha the equation d = sum w_i g_i says that d maximises
sum p_i (g_i.d)^(1 - alpha) / (1 - alpha) - |d|^2 / 2, a concave function, found by
Newton's method with backtracking, in the space that the gradients span. With alpha = 1
the powers are logarithms, and this is Nash-MTL (Navon et al., Claim 3.1).
"""

import numpy as np

from tests.references.min_norm import min_norm_point


def weights(J, alpha=1.0, preference=None):
    """Weights of gradients for which there is a direction that helps all."""
    J = np.asarray(J, np.float64)
    p = np.ones(len(J)) if preference is None else np.asarray(preference, np.float64)
    return p * (J @ direction(J, alpha, p)) ** -alpha


def direction(J, alpha, p):
    """The update d."""
    J = np.asarray(J, np.float64)
    basis, coordinates = np.linalg.qr(J.T)
    A = coordinates.T
    start, _ = min_norm_point(A / np.linalg.norm(A, axis=1)[:, None])
    # The best multiple of a direction that helps all.
    gains = p @ (A @ start) ** (1 - alpha)
    d = start * (gains / (start @ start)) ** (1 / (1 + alpha))

    def value(d):
        along = A @ d
        if along.min() <= 0:
            return -np.inf
        powers = np.log(along) if alpha == 1 else along ** (1 - alpha) / (1 - alpha)
        return p @ powers - d @ d / 2

    def newton(d):
        along = A @ d
        slope = (p * along**-alpha) @ A - d
        curvature = np.eye(len(d)) + (A.T * (alpha * p * along ** (-alpha - 1))) @ A
        return np.linalg.solve(curvature, slope), slope

    size = 1.0
    for _ in range(500):
        step, slope = newton(d)
        if slope @ step < 1e-10 * (d @ d):
            break
        size, before = 1.0, value(d)
        while value(d + size * step) < before + 1e-4 * size * (slope @ step):
            size /= 2
        d = d + size * step
    # The value is flat to its rounding by now, and the steps are safe.
    for _ in range(6):
        d = d + newton(d)[0]
    return basis @ d
