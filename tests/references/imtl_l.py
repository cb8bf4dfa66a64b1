"""The loss balance of Liu et al., its scales learned by plain descent or by Adam."""

import numpy as np


def objective(s, L):
    """What is minimised over the scales."""
    return np.exp(s) * L - s


def imtl_l(losses, *, rate, adam):
    """Weights of every step."""
    K = losses.shape[1]
    s, m, v = np.zeros(K), np.zeros(K), np.zeros(K)
    history = []
    for t, L in enumerate(losses, start=1):
        history.append(np.exp(s))
        g = np.exp(s) * L - 1
        if adam:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            g = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        s = s - rate * g
    return np.array(history)
