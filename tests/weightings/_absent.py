"""Problems of four terms, and which of those are there in each of twelve steps."""

import numpy as np

from tests._asserts import assert_zero

# No other axis of a state has as many entries as there are terms.
TERMS = 4

MASKS = np.array(
    [
        [1, 1, 0, 1],
        [1, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 0, 0],
        [1, 1, 0, 1],
        [0, 0, 1, 0],
        [1, 0, 1, 1],
        [0, 1, 1, 1],
        [1, 0, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 1, 1],
        [1, 1, 0, 1],
    ],
    dtype=bool,
)


def problem(steps, seed=0):
    """Gramians [steps, K, K] and positive losses [steps, K]."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(steps, TERMS, 9)) + 0.5 * rng.normal(size=9)
    rows *= np.exp(rng.normal(size=TERMS))[:, None]
    losses = np.exp(0.5 * rng.normal(size=(steps, TERMS)))
    return np.einsum("tip,tjp->tij", rows, rows), losses


def assert_weights_absent_zero(weights, mask):
    if weights.ndim == 2:
        assert_zero(weights[~mask])
        weights = weights.T
    assert_zero(weights[~mask])
