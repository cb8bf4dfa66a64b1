"""The min-norm point of a polytope, in float64: Wolfe's algorithm (1976).

It is a different algorithm from the library's, on the vectors and not on their gramian.
P. Wolfe, "Finding the nearest point in a polytope", Mathematical Programming 11, 1976.
"""

import numpy as np


def min_norm_point(vectors):
    """Returns the shortest convex combination of the rows, and its weights."""
    given = rows = np.asarray(vectors, dtype=np.float64)
    if rows.shape[1] > len(rows):
        # The same vectors in coordinates of the space that they span. Each keeps its
        # own digits, as Householder's reflections treat every column by itself.
        rows = np.linalg.qr(rows.T, mode="r").T
    lengths = np.linalg.norm(rows, axis=1)
    size = lengths.max() or 1.0
    corral = [int(np.argmin(lengths))]
    weights = np.array([1.0])
    for _ in range(1000 * len(rows)):
        point = weights @ rows[corral]
        products = rows @ point
        best = int(np.argmin(products))
        # The bound is in units of what the products can be known to.
        bound = 1e-15 * size * np.linalg.norm(point)
        if point @ point - products[best] <= bound or best in corral:
            break
        corral.append(best)
        weights = np.append(weights, 0.0)
        while True:
            affine = _affine_minimizer(rows[corral])
            if np.all(affine > 1e-15):
                weights = affine
                break
            down = affine <= 1e-15
            ratios = weights[down] / (weights[down] - affine[down])
            weights = weights + np.min(ratios) * (affine - weights)
            keep = weights > 1e-15
            keep[np.flatnonzero(down)[np.argmin(ratios)]] = False
            corral = [index for index, kept in zip(corral, keep, strict=True) if kept]
            weights = weights[keep] / weights[keep].sum()
    full = np.zeros(len(rows))
    full[corral] = weights
    return full @ given, full


def _affine_minimizer(rows):
    """Weights that sum to 1 of the shortest vector of the affine hull."""
    if len(rows) == 1:
        return np.array([1.0])
    base, edges = rows[0], rows[1:] - rows[0]
    along, *_ = np.linalg.lstsq(edges.T, -base, rcond=None)
    return np.concatenate([[1 - along.sum()], along])
