"""ExcessMTL of He et al., with the first step as in their code."""

import numpy as np


def excess_mtl(grads, present, *, eta, eps):
    """The weights of every step."""
    terms = grads.shape[1]
    S, first, w = np.zeros(grads.shape[1:]), np.full(terms, np.nan), np.ones(terms)
    history = []
    for g, mask in zip(grads, present, strict=True):
        shown = np.zeros(terms)
        for i in np.flatnonzero(mask):
            S[i] += g[i] ** 2
            excess = 0.0
            for element, total in zip(g[i], S[i], strict=True):
                if element != 0:
                    excess += element**2 / np.sqrt(total + eps)
            if np.isnan(first[i]):
                if excess > 0:
                    first[i] = excess
            else:
                w[i] *= np.exp(eta * excess / first[i])
            shown[i] = w[i]
        if mask.any():
            shown *= mask.sum() / shown.sum()
        history.append(shown)
    return np.array(history)
