"""EnCodec's balancer, section 3.4 of Défossez et al."""

import numpy as np


def factors(cotangents, *, total_norm, weights, decay, per_row):
    """What each gradient is multiplied by; ``cotangents`` [steps, K, rows, ...]."""
    total, fix, history = 0.0, 0.0, []
    for g in cotangents:
        flat = g.reshape(*g.shape[:2], -1)
        if per_row:
            norm = np.mean(np.linalg.norm(flat, axis=2), axis=1)
        else:
            norm = np.sqrt(np.sum(flat**2, axis=(1, 2)))
        total = decay * total + norm
        fix = decay * fix + 1
        share = np.asarray(weights) / np.sum(weights)
        history.append(total_norm * share / (total / fix))
    return np.array(history)
