"""PCGrad, Alg. 1 of Yu et al."""

import numpy as np


def surgery(J, orders):
    """Line by line on the gradients themselves; ``orders[i]`` is term i's order."""
    PC = np.array(J, np.float64)
    for i in range(len(J)):
        for j in orders[i]:
            if j == i:
                continue
            if PC[i] @ J[j] < 0:
                PC[i] = PC[i] - PC[i] @ J[j] / (J[j] @ J[j]) * J[j]
    return PC
