"""Relative loss balancing with random lookback, Bischof and Kraus."""

import numpy as np


def balance(current, reference, T):
    """K times the softmax of the ratios."""
    powers = np.exp(current / (T * reference))
    return len(current) * powers / powers.sum()


def candidates(losses, t, lam, *, T, alpha):
    """The weights of step t, for rho = 0 and for rho = 1, after those of t - 1."""
    last = balance(losses[t], losses[t - 1], T)
    first = balance(losses[t], losses[0], T)
    return [alpha * past + (1 - alpha) * last for past in (first, lam)]
