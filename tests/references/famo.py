"""Algorithm 1 of FAMO, with Adam and an L2 penalty on the logits as its authors do."""

import numpy as np


def famo(before, after, *, rate, gamma):
    """Weights of every step, for the losses before and after it, both [steps, K]."""
    K = before.shape[1]
    xi, m, v = np.zeros(K), np.zeros(K), np.zeros(K)
    history = []
    for t, (now, then) in enumerate(zip(before, after, strict=True), start=1):
        z = np.exp(xi) / np.exp(xi).sum()
        history.append(z / now / np.sum(z / now))
        delta = np.log(now) - np.log(then)
        jacobian = np.diag(z) - np.outer(z, z)
        g = jacobian.T @ delta + gamma * xi
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        xi = xi - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return np.array(history)
