"""GradNorm, Alg. 1 of Chen et al., with gradient descent or Adam on the weights."""

import numpy as np


def l_grad(w, n, target):
    """Eq. 2, the target held constant."""
    return sum(abs(w[i] * n[i] - target[i]) for i in range(len(w)))


def gradient(w, n, target):
    """Derivative of Eq. 2 in w, the target held constant; 0 at the kink."""
    above = [1.0 if w[i] * n[i] > target[i] else 0.0 for i in range(len(w))]
    below = [1.0 if w[i] * n[i] < target[i] else 0.0 for i in range(len(w))]
    return np.array([n[i] * (above[i] - below[i]) for i in range(len(w))])


def differences(w, n, target, h=1e-6):
    """The same by central differences, away from the kink."""
    found = []
    for i in range(len(w)):
        up, down = w.copy(), w.copy()
        up[i] += h
        down[i] -= h
        found.append((l_grad(up, n, target) - l_grad(down, n, target)) / (2 * h))
    return np.array(found)


def gradnorm(jacobians, losses, *, alpha, rate, adam):
    """Weights that each step uses; ``jacobians`` [steps, T, P], losses [steps, T]."""
    T = losses.shape[1]
    w, history = np.ones(T), []
    m, v = np.zeros(T), np.zeros(T)
    for t, (rows, L) in enumerate(zip(jacobians, losses, strict=True)):
        history.append(w.copy())  # grad L(t) has the weights w(t)
        n = np.linalg.norm(rows, axis=1)
        G = w * n
        L_tilde = L / losses[0]
        r = L_tilde / np.mean(L_tilde)
        target = np.mean(G) * r**alpha
        g = gradient(w, n, target)
        if adam:
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g**2
            m_hat = m / (1 - 0.9 ** (t + 1))
            v_hat = v / (1 - 0.999 ** (t + 1))
            w = w - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        else:
            w = w - rate * g
        w = np.maximum(w, 0)  # the paper does not say; here no weight is negative
        w = T * w / np.sum(w)
    return np.array(history)
