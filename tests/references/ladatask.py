"""Efficient AdaTask, Eq. 8 and 9 of Yang et al., with RMSProp."""

import numpy as np


def rmsprop(theta, gradients, steps, layers, *, eta, gamma, epsilon, h, total, inside):
    """``layers`` lists positions in ``theta``; ``h`` aggregates a layer's g^2."""
    theta, history = [np.array(p, np.float64) for p in theta], []
    C, G = {}, [np.zeros_like(p) for p in theta]
    for t in range(1, steps + 1):
        g = gradients(t, theta)
        tasks = range(len(g))
        new = [np.array(p) for p in theta]
        for l, layer in enumerate(layers):
            for k in tasks:
                squares = np.concatenate([np.ravel(g[k][i] ** 2) for i in layer])
                C[k, l] = gamma * C.get((k, l), 0.0) + (1 - gamma) * h(squares)
            for i in layer:
                if total == "sum_sq":
                    dot = sum(g[k][i] ** 2 for k in tasks)
                else:
                    dot = sum(g[k][i] for k in tasks) ** 2
                G[i] = gamma * G[i] + (1 - gamma) * dot
                for k in tasks:
                    if C[k, l] == 0:
                        continue
                    G_k = C[k, l] / sum(C[j, l] for j in tasks) * G[i]
                    root = np.sqrt(G_k + epsilon) if inside else np.sqrt(G_k) + epsilon
                    new[i] -= eta / root * g[k][i]
        theta = new
        history.append(theta)
    return history
