"""MetaBalance, Alg. 1 of He et al., with plain descent behind it.

The form is that of the authors' code (strategy C, norms from 0). Where the main term
has been silent in a layer so far, its gradients pass: the paper treats shared layers
only.
"""

import numpy as np


def descend(theta, gradients, steps, groups, *, eta, r, beta, main, strategy):
    """``groups`` lists the layers: positions in ``theta``."""
    theta, history = [np.array(p, np.float64) for p in theta], []
    m = {}
    for t in range(1, steps + 1):
        g = [[np.array(x) for x in one] for one in gradients(t, theta)]
        for l, layer in enumerate(groups):
            for i in range(len(g)):
                norm = np.sqrt(sum(np.sum(g[i][p] ** 2) for p in layer))
                m[i, l] = beta * m.get((i, l), 0.0) + (1 - beta) * norm
            tar = m[main, l]
            for i in range(len(g)):
                own = m[i, l]
                wanted = {"both": True, "reduce": own > tar, "enlarge": own < tar}
                if tar > 0 and own > 0 and wanted[strategy]:
                    for p in layer:
                        g[i][p] = g[i][p] * tar / own * r + g[i][p] * (1 - r)
        theta = [p - eta * sum(one[j] for one in g) for j, p in enumerate(theta)]
        history.append(theta)
    return history
