"""M-ConFIG of Liu, Chu and Thuerey, with any rule for the combined gradient."""

import numpy as np


def directions(steps, combine, *, beta):
    """The combined momentum of every step.

    ``steps`` lists for each step what is differentiated in it, a dict from the index of
    a term to its gradient; ``combine`` makes one vector of the rows of a matrix.
    """
    m, t, history = {}, {}, []
    for gradients in steps:
        for i, g in gradients.items():
            t[i] = t.get(i, 0) + 1
            m[i] = beta * m.get(i, np.zeros_like(g)) + (1 - beta) * g
        hats = [m[i] / (1 - beta ** t[i]) for i in sorted(m)]
        history.append(combine(np.array(hats)))
    return np.array(history)


def adam(history, *, beta_1, beta_2, eps):
    """Steps made of combined momenta, with the second moment of the pseudo gradient.

    It is the gradient whose first moment in Adam would be the combined momentum.
    """
    fake_m, s, steps = np.zeros(history.shape[1]), np.zeros(history.shape[1]), []
    for t, combined in enumerate(history, start=1):
        later = combined * (1 - beta_1**t)
        fake_gradient = (later - beta_1 * fake_m) / (1 - beta_1)
        fake_m = later
        s = beta_2 * s + (1 - beta_2) * fake_gradient**2
        steps.append(combined / (np.sqrt(s / (1 - beta_2**t)) + eps))
    return np.array(steps)
