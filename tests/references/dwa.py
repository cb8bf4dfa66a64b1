"""Dynamic weight average, Eq. 7 of Liu, Johns and Davison; t counts epochs."""

import numpy as np


def dwa(losses, *, T, epoch):
    """Weights of every step, for losses [steps, K] in epochs of ``epoch`` steps."""
    steps, K = losses.shape
    L = [losses[s : s + epoch].mean(axis=0) for s in range(0, steps, epoch)]
    history = []
    for step in range(steps):
        t = step // epoch
        if t < 2:
            history.append(np.ones(K))
            continue
        r = [L[t - 1][i] / L[t - 2][i] for i in range(K)]
        powers = np.exp(np.array(r) / T)
        history.append(K * powers / powers.sum())
    return np.array(history)
