"""Exponentiated gradient on the excess of each loss, its weights multiplied."""

import numpy as np


def excess(losses, *, eta, floor=None):
    """Weights of every step; ``floor`` None: the lowest losses so far."""
    K = losses.shape[1]
    w, history = np.ones(K), []
    for t, current in enumerate(losses):
        for i in range(K):
            b = losses[: t + 1, i].min() if floor is None else floor[i]
            if losses[0, i] > b:
                e = min(max((current[i] - b) / (losses[0, i] - b), 0.0), 1.0)
            else:
                e = float(current[i] > b)
            w[i] = w[i] * np.exp(eta * e)
        w = K * w / w.sum()
        history.append(w.copy())
    return np.array(history)
