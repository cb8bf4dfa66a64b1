"""Krum (Blanchard et al., section 4) and the trimmed mean (Yin et al., Def. 2)."""

import numpy as np


def krum(J, f, m):
    """Weights of the m gradients with the lowest scores, ties by the index."""
    n = len(J)
    scores = []
    for i in range(n):
        others = [np.sum((J[i] - J[j]) ** 2) for j in range(n) if j != i]
        scores.append(sum(sorted(others)[: n - f - 2]))
    weights = np.zeros(n)
    for i in sorted(range(n), key=lambda i: (scores[i], i))[:m]:
        weights[i] = 1 / m
    return weights


def trimmed_mean(x, b):
    """Over axis 0, one element at a time."""
    flat = np.reshape(x, (len(x), -1)).astype(np.float64)
    means = [np.mean(sorted(column)[b : len(column) - b]) for column in flat.T]
    return np.reshape(means, np.shape(x)[1:])
