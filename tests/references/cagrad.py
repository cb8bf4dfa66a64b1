"""CAGrad, Eq. 3 of Liu et al., by trying every set of active terms.

With d = g_0 + J^T z, the optimality conditions of max min g_i.d in the ball are:
g_i.d = mu where z_i > 0, g_i.d >= mu elsewhere, and |J^T z| = c |g_0|. For a given
set of active terms they are a linear system and one quadratic equation for mu. Zero
gradients are left out of the minimum. Where no mu solves them (0 in the hull), d is the
projection of g_0 on {d : J d >= 0}.
"""

from itertools import combinations

import numpy as np


def direction(J, c):
    """The update d."""
    J = np.array(J, np.float64)
    g_0 = J.mean(axis=0)
    awake = [i for i in range(len(J)) if np.any(J[i])]
    radius = c * np.linalg.norm(g_0)
    if radius == 0:
        return g_0
    length = np.linalg.norm(J[awake], axis=1)
    U = J[awake] / length[:, None]
    best = None
    for size in range(1, len(awake) + 1):
        for active in map(list, combinations(range(len(awake)), size)):
            G = U[active] @ U[active].T
            if np.linalg.cond(G) > 1e12:
                continue
            p = np.linalg.solve(G, 1 / length[active])
            q = np.linalg.solve(G, U[active] @ g_0)
            for mu in _radius(p, q, G, radius):
                z = mu * p - q
                d = g_0 + z @ U[active]
                slack = U @ d - mu / length
                fits = min(z.min(), slack.min()) >= -1e-9 * radius
                if fits and (best is None or mu > best[0]):
                    best = (mu, d)
    return projection(U, g_0) if best is None else best[1]


def _radius(p, q, G, radius):
    """The mu for which mu p - q is ``radius`` long."""
    a, b, e = p @ G @ p, p @ G @ q, q @ G @ q - radius**2
    if b * b < a * e:
        return ()
    root = np.sqrt(b * b - a * e)
    return (b + root) / a, (b - root) / a


def projection(U, g):
    """The d nearest to g with U d >= 0."""
    if np.all(U @ g >= 0):
        return g
    best = None
    for size in range(1, len(U) + 1):
        for active in map(list, combinations(range(len(U)), size)):
            z = -np.linalg.lstsq(U[active] @ U[active].T, U[active] @ g, rcond=None)[0]
            d = g + z @ U[active]
            fits = z.min() >= 0 and (U @ d).min() >= -1e-9 * np.linalg.norm(g)
            apart = np.linalg.norm(d - g)
            if fits and (best is None or apart < np.linalg.norm(best - g)):
                best = d
    return best
