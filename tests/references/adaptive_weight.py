"""VQGAN, Eq. 7 of Esser et al., with the bound of the authors' code."""

import numpy as np


def weights(rows, *, main, auxiliary, largest, eps, absolute):
    """Weights of one step, ``rows`` [K, P]."""
    size, own = np.linalg.norm(rows[main]), np.linalg.norm(rows[auxiliary])
    w = np.ones(len(rows))
    added = eps if absolute else eps * size
    w[auxiliary] = np.clip(size / (own + added), 0, largest)
    return w
