"""SDMGrad of Xiao, Ban and Ji, as in their code, on the K x P matrices."""

import numpy as np

from tests.references.moco import restricted, simplex


def sdmgrad(J1, J2, J3, present, *, lam, rate, momentum, rounds):
    """The rows (w_i + lam / K) (J_3)_i / (1 + lam) of every step."""
    w, history = np.full(J1.shape[1], 1 / J1.shape[1]), []
    for t, mask in enumerate(present):
        there, rows = np.flatnonzero(mask), np.zeros_like(J1[t])
        if len(there):
            part, mass = restricted(w, there)
            A = J1[t][there] @ J2[t][there].T
            scale = np.mean(np.sqrt(np.maximum(np.diag(A), 0)))
            A = A / scale**2
            velocity = np.zeros(len(there))
            for _ in range(rounds):
                gradient = A @ part + lam * A.mean(axis=1)
                velocity = momentum * velocity + gradient
                part = simplex(part - rate * velocity)
            w[there] = mass * part
            weights = (part + lam / len(there)) / (1 + lam)
            rows[there] = weights[:, None] * J3[t][there]
        history.append(rows)
    return np.array(history)
