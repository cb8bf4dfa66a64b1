"""MoDo of Chen et al., on the K x P matrices of three batches."""

import numpy as np

from tests.references.moco import restricted, simplex


def modo(J1, J2, J3, present, *, gamma, rho):
    """The rows lam_i (J_3)_i of every step; ``gamma`` is a function of t."""
    lam, history = np.full(J1.shape[1], 1 / J1.shape[1]), []
    for t, mask in enumerate(present):
        there, rows = np.flatnonzero(mask), np.zeros_like(J1[t])
        if len(there):
            part, mass = restricted(lam, there)
            A = J1[t][there] @ J2[t][there].T + rho * np.eye(len(there))
            part = simplex(part - gamma(t + 1) * A @ part)
            lam[there] = mass * part
            rows[there] = part[:, None] * J3[t][there]
        history.append(rows)
    return np.array(history)
