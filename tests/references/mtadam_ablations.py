"""Ablations i and iii of MTAdam: Alg. 1 with line 8 left out or without its anchor."""

import numpy as np

from tests.references.mtadam import moments, scale_of


def run(theta, gradients, steps, layers, *, balance, alpha, b1, b2, b3, eps, terms):
    """``balance``: "none" (i) or "inverse" (iii, g / n with n from its first norm)."""
    theta = [np.array(p, np.float64) for p in theta]
    m = [[np.zeros_like(p) for p in theta] for _ in range(terms)]
    v = [[np.zeros_like(p) for p in theta] for _ in range(terms)]
    n, history = {}, []
    for t in range(1, steps + 1):
        g = [[np.array(x) for x in one] for one in gradients(t, theta)]
        for l, layer in enumerate(layers):
            for i in range(terms):
                norm = np.sqrt(sum(np.sum(g[i][p] ** 2) for p in layer))
                n[i, l] = b3 * n[i, l] + (1 - b3) * norm if n.get((i, l)) else norm
                if balance == "inverse" and n[i, l] > 0:
                    for p in layer:
                        g[i][p] = g[i][p] / n[i, l]
        hats = [moments(m[i], v[i], g[i], t, b1, b2) for i in range(terms)]
        m_hat, v_hat = [hat[0] for hat in hats], [hat[1] for hat in hats]
        theta = [
            p
            - alpha
            * sum(m_hat[i][j] for i in range(terms))
            / (np.sqrt(scale_of(v_hat, j, 0, "max")) + eps)
            for j, p in enumerate(theta)
        ]
        history.append(theta)
    return history
