"""SoftAdapt, Alg. 1 of Heydari, Thompson and Mehmood, with Eq. 3 and 4.

The rate of change is the derivative at the newest point of the polynomial through the
last ``order + 1`` losses.
"""

import numpy as np


def slope(values):
    """Derivative of the interpolating polynomial, in Lagrange's form, at the end."""
    x = range(-len(values) + 1, 1)  # the newest point lies at 0
    nodes = range(len(values))
    total = 0.0
    for j in nodes:
        for i in nodes:
            if i == j:
                continue
            others = [k for k in nodes if k not in (i, j)]
            basis = np.prod([(0 - x[k]) / (x[j] - x[k]) for k in others])
            total += values[j] * basis / (x[j] - x[i])
    return total


def weights_of(l, *, beta, order, normalized, f, epsilon):
    """Lines 3 to 13 for one step; ``l`` holds the stored losses of each term."""
    m = len(l)
    s = np.array([slope(l[i][-(order + 1) :]) for i in range(m)])
    if normalized:
        s = s / (np.sum(np.abs(s)) + epsilon)
    numerators = np.exp(beta * s - np.max(beta * s))
    alpha = numerators / np.sum(numerators)
    if f == "mean":  # Alg. 1, lines 4 and 12
        mean = np.array([np.mean(one) for one in l])
        alpha = mean * alpha / (np.sum(mean * alpha) + epsilon)
    if f == "current":  # Eq. 4
        newest = np.array([one[-1] for one in l])
        alpha = newest * alpha / (np.sum(newest * alpha) + epsilon)
    return alpha


def softadapt(losses, *, beta, n, order, normalized, f, epsilon, every, whole):
    """Weights of every step, for losses [steps, m]; they add up to ``whole``."""
    steps, m = losses.shape
    alpha, history = np.full(m, 1 / m), []
    for t in range(1, steps + 1):
        if t >= n and (t - n) % every == 0:
            stored = [losses[t - n : t, i] for i in range(m)]
            alpha = weights_of(
                stored,
                beta=beta,
                order=order,
                normalized=normalized,
                f=f,
                epsilon=epsilon,
            )
        history.append(whole * alpha)
    return np.array(history)
