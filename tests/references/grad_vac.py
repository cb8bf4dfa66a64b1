"""Gradient Vaccine, Alg. 1 of Wang et al., line by line on the gradients themselves."""

import numpy as np


def vaccinated(J, targets, orders, beta):
    """The new gradients and the new targets; ``orders[i]`` is term i's order."""
    J, targets = np.array(J, np.float64), np.array(targets, np.float64)
    new = J.copy()
    for i in range(len(J)):
        for j in orders[i]:
            if j == i:
                continue
            lengths = np.linalg.norm(new[i]), np.linalg.norm(J[j])
            phi = new[i] @ J[j] / (lengths[0] * lengths[1])
            hat = targets[i, j]
            if phi < hat:
                sines = np.sqrt(1 - phi**2), np.sqrt(1 - hat**2)
                alpha = lengths[0] * (hat * sines[0] - phi * sines[1])
                new[i] = new[i] + alpha / (lengths[1] * sines[1]) * J[j]
            targets[i, j] = (1 - beta) * hat + beta * phi
    return new, targets
