"""DB-MTL of Lin et al., Alg. 1, on the K x P matrix of the gradients."""

import numpy as np


def db_mtl(grads, losses, present, *, beta, s, eps):
    """The scaled rows of every step, whose sum is the paper's step."""
    terms = grads.shape[1]
    buffer, own, history = np.zeros(grads.shape[1:]), np.zeros(terms, int), []
    for g, loss, mask in zip(grads, losses, present, strict=True):
        there, rows = np.flatnonzero(mask), np.zeros_like(buffer)
        for k in there:
            own[k] += 1
            factor = beta / own[k] ** s
            logarithm = g[k] / (loss[k] + eps)
            buffer[k] = factor * buffer[k] + (1 - factor) * logarithm
        norms = np.array([np.linalg.norm(buffer[k]) for k in there])
        for k, norm in zip(there, norms, strict=True):
            rows[k] = np.max(norms) / norm * buffer[k]
        history.append(rows)
    return np.array(history)
