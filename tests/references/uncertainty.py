"""Uncertainty weighting, Eq. 7 and 10 of Kendall, Gal and Cipolla.

The objective is written in sigma as printed, and differentiated in s = log sigma^2 by
the chain rule: d sigma / d s = sigma / 2.
"""

import numpy as np


def objective(sigma, L, kind):
    """One term of Eq. 7 (regression) or of Eq. 10's last (classification)."""
    scale = 2 * sigma**2 if kind == "regression" else sigma**2
    return L / scale + np.log(sigma)


def gradient(s, L, kind):
    """d objective / d s."""
    sigma = np.exp(s / 2)
    by_sigma = -L / sigma**3 if kind == "regression" else -2 * L / sigma**3
    return (by_sigma + 1 / sigma) * sigma / 2


def uncertainty(losses, *, kinds, rate, adam):
    """Weights that each step uses: what multiplies L in the objective."""
    K = losses.shape[1]
    s, m, v, history = np.zeros(K), np.zeros(K), np.zeros(K), []
    for t, L in enumerate(losses):
        sigma = np.exp(s / 2)
        history.append(
            [
                1 / (2 * sigma[i] ** 2)
                if kinds[i] == "regression"
                else 1 / sigma[i] ** 2
                for i in range(K)
            ]
        )
        g = np.array([gradient(s[i], L[i], kinds[i]) for i in range(K)])
        if adam:
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g**2
            m_hat = m / (1 - 0.9 ** (t + 1))
            v_hat = v / (1 - 0.999 ** (t + 1))
            s = s - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        else:
            s = s - rate * g
    return np.array(history)
