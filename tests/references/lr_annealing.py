"""Learning-rate annealing, Alg. 1 of Wang, Teng and Perdikaris."""

import numpy as np


def lr_annealing(jacobians, *, decay, statistic, anchor, plain):
    """Weights of every step; ``jacobians`` [steps, K, P]."""
    lam, history = np.ones(jacobians.shape[1]), []
    for J in jacobians:
        residual = np.abs(J[anchor])
        size = residual.max() if statistic == "max" else residual.mean()
        new = lam.copy()
        for i in range(len(J)):
            if i != anchor:
                factor = 1.0 if plain else lam[i]
                hat = size / np.mean(np.abs(factor * J[i]))
                new[i] = decay * lam[i] + (1 - decay) * hat
        lam = new
        history.append(lam)
    return np.array(history)
