"""Aligned-MTL, Alg. 1 of Senushkin et al., from the gradients' singular values."""

import numpy as np


def weights(J, scale="min", preference=None):
    """Weights of the gradients as they are; gradients of full rank."""
    J = np.asarray(J, np.float64)
    shares = np.full(len(J), 1 / len(J)) if preference is None else preference
    vectors, roots, _ = np.linalg.svd(J, full_matrices=False)
    values = roots**2
    chosen = {"min": values.min(), "median": np.median(values), "rmse": values.mean()}
    balance = vectors @ np.diag(1 / roots) @ vectors.T
    return np.sqrt(chosen[scale]) * balance @ shares
