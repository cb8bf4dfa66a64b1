"""Loss-balanced task weighting of Liu, Liang and Gitter, and their code's form."""

import numpy as np


def lbtw(losses, *, alpha, batches, normalise):
    """Weights of every step; an epoch has ``batches`` of them."""
    history = []
    for step, current in enumerate(losses):
        if step % batches == 0:
            initial = current
        weights = np.array(
            [(now / then) ** alpha for now, then in zip(current, initial, strict=True)]
        )
        if normalise:  # the authors' code
            weights = weights / weights.sum() * len(current)
        history.append(weights)
    return np.array(history)
