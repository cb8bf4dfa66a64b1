"""Conversions between leaves and the papers' K x P matrix, and plain descent."""

import numpy as np


def rows(g):
    """The Jacobian: one row a term."""
    return np.array([np.concatenate([np.ravel(leaf) for leaf in one]) for one in g])


def leaves(J, like):
    """The way back, in the shapes of the leaves ``like``."""
    cuts = np.cumsum([leaf.size for leaf in like])[:-1]
    shapes = [np.shape(leaf) for leaf in like]
    return [
        [p.reshape(s) for p, s in zip(np.split(row, cuts), shapes, strict=True)]
        for row in J
    ]


def mixed(gradients, mix):
    """``gradients`` after ``mix(t, J) -> J`` has changed the rows."""

    def changed(t, theta):
        g = gradients(t, theta)
        return leaves(mix(t, rows(g)), g[0])

    return changed


def descend(theta, gradients, steps, *, eta):
    """Gradient descent on the sum of the terms."""
    theta, history = [np.array(p, np.float64) for p in theta], []
    for t in range(1, steps + 1):
        g = gradients(t, theta)
        theta = [p - eta * sum(one[i] for one in g) for i, p in enumerate(theta)]
        history.append(theta)
    return history
