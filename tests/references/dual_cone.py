"""Projection on the dual cone by SciPy's active set, in float64."""

import numpy as np
import scipy


def projected(J, combination):
    """The point nearest to ``combination @ J`` with ``J x >= 0``.

    By duality ``(combination + z) @ J`` for the z >= 0 that makes it shortest.
    """
    J = np.asarray(J, np.float64)
    lengths = np.linalg.norm(J, axis=1)
    units = np.where(lengths > 0, lengths, 1)
    # Rows of unit length: the active set's own tolerance is absolute.
    rows = J / units[:, None]
    start = np.asarray(combination, np.float64) @ J
    size = np.linalg.norm(start) or 1.0
    z, _ = scipy.optimize.nnls(rows.T, -start / size, maxiter=100 * len(J))
    return start + size * (z @ rows)


def upgrad(J, preference):
    """The combination of the single projections."""
    each = [projected(J, row) for row in np.diag(preference)]
    return np.sum(each, axis=0)
