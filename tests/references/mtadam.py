"""MTAdam, Alg. 1 of Malkiel and Wolf, in its printed and in its authors' form.

Line numbers are those of Alg. 1 (right-hand side). ``groups`` lists what the paper
calls layers: each a list of positions in ``theta``.
"""

import numpy as np


def printed(theta, gradients, steps, groups, *, alpha, b1, b2, b3, eps, **options):
    """Alg. 1 to the letter: n starts at 1, the first term is the anchor."""
    I = options.pop("terms")
    scaling, weights = options.pop("scaling", "max"), options.pop("weights", np.ones(I))
    assert not options
    L = range(len(groups))
    theta = [np.array(p, np.float64) for p in theta]
    m = [[np.zeros_like(p) for p in theta] for _ in range(I)]  # line 1
    v = [[np.zeros_like(p) for p in theta] for _ in range(I)]
    n = [[1.0 for _ in L] for _ in range(I)]  # line 2
    history = []
    for t in range(1, steps + 1):  # line 3
        m_hat, v_hat = [None] * I, [None] * I
        gradient_at_start = gradients(t, theta)
        for i in range(I):  # line 4
            g = [np.array(x, np.float64) for x in gradient_at_start[i]]  # line 5
            for l in L:  # line 6
                norm = np.sqrt(sum(np.sum(g[leaf] ** 2) for leaf in groups[l]))
                n[i][l] = b3 * n[i][l] + (1 - b3) * norm  # line 7
                for leaf in groups[l]:  # line 8, times the authors' ranks
                    g[leaf] = weights[i] * n[0][l] / n[i][l] * g[leaf]
            m_hat[i], v_hat[i] = moments(m[i], v[i], g, t, b1, b2)  # lines 9 to 12
        for i in range(I):  # line 13
            for p in range(len(theta)):  # lines 14 and 15
                denominator = np.sqrt(scale_of(v_hat, p, i, scaling)) + eps
                theta[p] = theta[p] - alpha * m_hat[i][p] / denominator
        history.append(list(theta))
    return history


def authors(theta, gradients, steps, groups, *, alpha, b1, b2, b3, eps, **options):
    """The authors' code, with three documented departures.

    The authors' form: the first norm seeds the moving average, and the anchor of a
    layer is the first term that is not silent there. The departures: a term is silent
    when n is at most 1e-10 of the layer's largest n (the authors compare with 1e-10
    itself); the average is seeded at the first norm that is not zero; silent terms
    pass as they are. ``anchor`` fixes the anchor.
    """
    I = options.pop("terms")
    scaling, weights = options.pop("scaling", "max"), options.pop("weights", np.ones(I))
    anchor = options.pop("anchor", None)
    assert not options
    L = range(len(groups))
    theta = [np.array(p, np.float64) for p in theta]
    m = [[np.zeros_like(p) for p in theta] for _ in range(I)]
    v = [[np.zeros_like(p) for p in theta] for _ in range(I)]
    n = [[None for _ in L] for _ in range(I)]
    history = []
    for t in range(1, steps + 1):
        g = [[np.array(x, np.float64) for x in one] for one in gradients(t, theta)]
        for l in L:
            for i in range(I):
                norm = np.sqrt(sum(np.sum(g[i][leaf] ** 2) for leaf in groups[l]))
                if n[i][l] is not None:
                    n[i][l] = b3 * n[i][l] + (1 - b3) * norm
                elif norm > 0:
                    n[i][l] = norm
            size = [n[i][l] if n[i][l] is not None else 0.0 for i in range(I)]
            heard = [i for i in range(I) if size[i] > 1e-10 * max(size)]
            if not heard:
                continue
            reference = size[heard[0] if anchor is None else anchor]
            for i in heard:
                for leaf in groups[l]:
                    g[i][leaf] = weights[i] * reference / size[i] * g[i][leaf]
        hats = [moments(m[i], v[i], g[i], t, b1, b2) for i in range(I)]
        m_hat, v_hat = [hat[0] for hat in hats], [hat[1] for hat in hats]
        for i in range(I):
            for p in range(len(theta)):
                denominator = np.sqrt(scale_of(v_hat, p, i, scaling)) + eps
                theta[p] = theta[p] - alpha * m_hat[i][p] / denominator
        history.append(list(theta))
    return history


def moments(m, v, g, t, b1, b2):
    """Lines 9 to 12 for one term: moves m and v, returns them bias-corrected."""
    for p in range(len(g)):
        m[p] = b1 * m[p] + (1 - b1) * g[p]
        v[p] = b2 * v[p] + (1 - b2) * g[p] ** 2
    return [x / (1 - b1**t) for x in m], [x / (1 - b2**t) for x in v]


def scale_of(v_hat, p, i, scaling):
    """What stands under the root in line 14: the maximum, or ablation iv or v."""
    if scaling == "max":
        return np.maximum.reduce([one[p] for one in v_hat])
    if scaling == "mean":
        return sum(one[p] for one in v_hat) / len(v_hat)
    return v_hat[i][p]
