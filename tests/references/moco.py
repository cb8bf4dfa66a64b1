"""MoCo of Fernando et al., Alg. 1, on the K x P matrix of the gradients."""

import numpy as np


def simplex(v):
    """Projection on the simplex, by bisection for the number to subtract."""
    low, high = np.min(v) - 1, np.max(v)
    for _ in range(200):
        middle = (low + high) / 2
        if np.sum(np.maximum(v - middle, 0)) > 1:
            low = middle
        else:
            high = middle
    return np.maximum(v - (low + high) / 2, 0)


def restricted(lam, there):
    """The weights among the terms that are there, and their sum."""
    mass = np.sum(lam[there])
    return (
        lam[there] / mass if mass > 0 else np.full(len(there), 1 / len(there))
    ), mass


def moco(grads, present, *, beta, gamma, rho):
    """The rows lam_i y_i of every step; ``beta`` and ``gamma`` are functions of t."""
    terms = grads.shape[1]
    y, lam = np.zeros(grads.shape[1:]), np.full(terms, 1 / terms)
    own, history = np.zeros(terms, int), []
    for t, h in enumerate(grads, start=1):
        there = np.flatnonzero(present[t - 1])
        rows = np.zeros_like(y)
        if len(there):
            for i in there:
                own[i] += 1
                y[i] = y[i] - beta(own[i]) * (y[i] - h[i])
            part, mass = restricted(lam, there)
            Y = y[there]
            moved = part - gamma(t) * (Y @ Y.T + rho * np.eye(len(there))) @ part
            part = simplex(moved)
            lam[there] = mass * part
            rows[there] = part[:, None] * Y
        history.append(rows)
    return np.array(history)
