"""The scalarised losses themselves, and their gradient by complex steps."""

import numpy as np


def _norm(x):
    return np.sqrt(np.sum(x * x))


def cosmos(losses, p, penalty):
    """The objective of Ruchte and Grabocka."""
    return p @ losses - penalty * (p @ losses) / (_norm(p) * _norm(losses))


def pbi(losses, p, penalty, z):
    """Zhang and Li, II-C, with the sign of d_1."""
    d_1 = (losses - z) @ p / _norm(p)
    d_2 = _norm(losses - (z + d_1 * p / _norm(p)))
    return d_1 + penalty * d_2


def gradient(objective, losses, *args):
    """Derivatives to the last digit: no difference is taken."""
    step = 1e-30
    shifted = losses + 1j * step * np.eye(len(losses))
    return np.array([objective(one, *args).imag / step for one in shifted])
