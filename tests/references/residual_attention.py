"""Residual-based attention of Anagnostopoulos et al."""

import numpy as np


def residual_attention(residuals, *, gamma, eta):
    """Weights of every step; ``residuals`` [steps, N]."""
    lam, history = np.zeros(residuals.shape[1]), []
    for r in residuals:
        lam = gamma * lam + eta * np.abs(r) / np.max(np.abs(r))
        history.append(lam)
    return np.array(history)
