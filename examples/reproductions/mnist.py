"""MNIST for the reproductions: from a local file, or downloaded once."""

from pathlib import Path

import numpy as np

LOCAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist.npz"


def load(path=None, stand_in=False):
    """Images [N, 28, 28] in [0, 1] and labels, for training and for the test.

    As a ``stand_in``, scikit-learn's 1,797 digits in that shape: nothing to download.
    """
    if stand_in:
        return _digits()
    path = path or (LOCAL if LOCAL.is_file() else None)
    if path is not None:
        with np.load(path) as archive:
            arrays = [
                archive[name] for name in ("x_train", "y_train", "x_test", "y_test")
            ]
    else:
        from sklearn.datasets import fetch_openml

        x, y = fetch_openml(
            "mnist_784", return_X_y=True, as_frame=False, parser="liac-arff"
        )
        x, y = x.reshape(-1, 28, 28), y.astype(np.int32)
        arrays = [x[:60_000], y[:60_000], x[60_000:], y[60_000:]]
    x_train, y_train, x_test, y_test = arrays
    return (
        (x_train / 255).astype(np.float32),
        y_train.astype(np.int32),
        (x_test / 255).astype(np.float32),
        y_test.astype(np.int32),
    )


def _digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.kron(x.reshape(-1, 8, 8) / 16, np.ones((3, 3)))
    x = np.pad(x, ((0, 0), (2, 2), (2, 2))).astype(np.float32)
    y = y.astype(np.int32)
    return x[:1400], y[:1400], x[1400:], y[1400:]
