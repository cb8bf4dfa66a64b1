"""DB-PINN of Zhou et al. with maximum and mean: inter- and intra-balancing."""

import numpy as np


def dual_balanced(jacobians, losses, *, anchor):
    """Weights of every step; ``jacobians`` [steps, K, P], ``losses`` [steps, K]."""
    K = jacobians.shape[1]
    conditions = [i for i in range(K) if i != anchor]
    hats, history = [], []
    for t, J in enumerate(jacobians):
        aggregated = sum(
            np.max(np.abs(J[anchor])) / np.mean(np.abs(J[i])) for i in conditions
        )
        difficulty = {i: losses[t, i] / np.mean(losses[: t + 1, i]) for i in conditions}
        hat = np.ones(K)
        for i in conditions:
            hat[i] = aggregated * difficulty[i] / sum(difficulty.values())
        hats.append(hat)
        history.append(np.mean(hats, axis=0))
    return np.array(history)
