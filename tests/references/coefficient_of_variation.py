"""CoV weighting of Groenendijk et al.: means and deviations over the whole past."""

import numpy as np


def coefficient_of_variation(losses):
    """Weights of every step; no running sums, the past is gone through again."""
    steps, K = losses.shape
    history = [np.full(K, 1 / K)]
    ratios = [np.ones(K)]
    for t in range(1, steps):
        ratios.append(losses[t] / losses[:t].mean(axis=0))
        past = np.array(ratios)
        c = past.std(axis=0) / past.mean(axis=0)
        history.append(c / c.sum())
    return np.array(history)
