"""AdaTask, Alg. 2 of Yang et al.: AdaGrad, RMSProp and Adam, term by term.

The paper prints epsilon outside the root (AdaGrad, Adam) and inside it (RMSProp);
``inside`` chooses. The factors ``w`` of the terms' steps are not the paper's.
"""

import numpy as np


def root(G, epsilon, inside):
    """The denominator in both of its printed forms."""
    return np.sqrt(G + epsilon) if inside else np.sqrt(G) + epsilon


def share(w, k):
    """By what the step of term k is multiplied."""
    return 1.0 if w is None else w[k]


def adagrad(theta, gradients, steps, terms, *, eta, epsilon, inside, w=None):
    """Alg. 2, first branch."""
    theta = [np.array(p, np.float64) for p in theta]
    G = [[np.zeros_like(p) for p in theta] for _ in range(terms)]
    history = []
    for t in range(1, steps + 1):
        g = gradients(t, theta)
        delta = [np.zeros_like(p) for p in theta]
        for k in range(terms):
            for i in range(len(theta)):
                G[k][i] = G[k][i] + g[k][i] ** 2
                delta[i] += share(w, k) * eta / root(G[k][i], epsilon, inside) * g[k][i]
        theta = [p - d for p, d in zip(theta, delta, strict=True)]
        history.append(theta)
    return history


def rmsprop(theta, gradients, steps, terms, *, eta, gamma, epsilon, inside, w=None):
    """Alg. 2, second branch."""
    theta = [np.array(p, np.float64) for p in theta]
    G = [[np.zeros_like(p) for p in theta] for _ in range(terms)]
    history = []
    for t in range(1, steps + 1):
        g = gradients(t, theta)
        delta = [np.zeros_like(p) for p in theta]
        for k in range(terms):
            for i in range(len(theta)):
                G[k][i] = gamma * G[k][i] + (1 - gamma) * g[k][i] ** 2
                delta[i] += share(w, k) * eta / root(G[k][i], epsilon, inside) * g[k][i]
        theta = [p - d for p, d in zip(theta, delta, strict=True)]
        history.append(theta)
    return history


def adam(
    theta, gradients, steps, terms, *, eta, gamma_1, gamma_2, epsilon, inside, w=None
):
    """Alg. 2, third branch; gamma_1 is the decay of the SECOND moment."""
    theta = [np.array(p, np.float64) for p in theta]
    G = [[np.zeros_like(p) for p in theta] for _ in range(terms)]
    m = [[np.zeros_like(p) for p in theta] for _ in range(terms)]
    history = []
    for t in range(1, steps + 1):
        g = gradients(t, theta)
        delta = [np.zeros_like(p) for p in theta]
        for k in range(terms):
            for i in range(len(theta)):
                G[k][i] = gamma_1 * G[k][i] + (1 - gamma_1) * g[k][i] ** 2
                m[k][i] = gamma_2 * m[k][i] + (1 - gamma_2) * g[k][i]
                G_hat = G[k][i] / (1 - gamma_1**t)
                m_hat = m[k][i] / (1 - gamma_2**t)
                delta[i] += share(w, k) * eta / root(G_hat, epsilon, inside) * m_hat
        theta = [p - d for p, d in zip(theta, delta, strict=True)]
        history.append(theta)
    return history
