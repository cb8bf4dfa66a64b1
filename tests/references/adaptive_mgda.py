"""Adaptive inexact MGDA, the algorithm after Eq. 2.16 of Aygar's thesis.

The test for a step is that of Eq. 2.9, which the printed 2.12 misses by a root.
"""

import numpy as np

from tests.references import flat
from tests.references.min_norm import min_norm_point


def descend(theta, gradients, steps, *, eta, lam, epoch, rule):
    """Returns the parameters and (epsilon, taken) after every step."""
    theta, history, notes = [np.array(p, np.float64) for p in theta], [], []
    epsilon = None
    mean, square, t_epoch = 0.0, 0.0, 0
    for t in range(1, steps + 1):
        J = flat.rows(gradients(t, theta))
        mean, square, t_epoch = mean + J, square + np.sum(J * J, axis=1), t_epoch + 1
        if epsilon is None:
            epsilon = np.zeros(len(J))
        d, _ = min_norm_point(J)
        taken = all(J[i] @ d >= epsilon[i] * np.linalg.norm(d) for i in range(len(J)))
        if taken:
            step = flat.leaves([d], theta)[0]
            theta = [p - eta * s for p, s in zip(theta, step, strict=True)]
        if t_epoch == epoch:
            mean, square = mean / epoch, square / epoch
            variance = np.maximum(square - np.sum(mean * mean, axis=1), 0)
            if rule == "std":
                epsilon = lam * np.sqrt(variance)
            else:
                epsilon = np.sqrt(lam * variance)
            mean, square, t_epoch = 0.0, 0.0, 0
        history.append(theta)
        notes.append((epsilon, taken))
    return history, notes
