"""GradDrop, Eq. 1 and 2 and Alg. 1 of Chen et al., element by element."""

import numpy as np


def drop(g, U, leak, f=lambda P: P):
    """One leaf: g[i] of each term, draws U, leaks [K]."""
    out = np.zeros_like(g[0])
    for at in np.ndindex(out.shape):
        column = [one[at] for one in g]
        size = sum(abs(x) for x in column)
        P = 0.5 * (1 + sum(column) / size) if size else 0.5
        for x, share in zip(column, leak, strict=True):
            M = x > 0 if f(P) > U[at] else x < 0
            out[at] += (share + (1 - share) * M) * x
    return out
