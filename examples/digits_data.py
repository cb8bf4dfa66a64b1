"""Images, splits, class weights and batches for ``digits.py``."""

import zipfile
import zlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

K = 10  # classes, each with its own loss term
LIGHT = 0  # the class whose weight is 1


def load_images(path=None):
    """Images in [0, 1], labels, and the official test images and labels or None."""
    if path is None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = np.asarray(pixels, np.float32).reshape(-1, 8, 8) / 16
        return images, np.asarray(labels), None, None
    x_train, y_train, x_test, y_test = load_npz(path)
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if x.ndim != 3 or min(x.shape) < 6 or y.shape != x.shape[:1]:
            raise SystemExit(
                f"--data: expected x_{part} of shape [N, height, width] with at least "
                f"6 images of 6 x 6 pixels and y_{part} of shape [N], found {x.shape} "
                f"and {y.shape} in {path}"
            )
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= K:
            raise SystemExit(
                f"--data: expected whole numbers from 0 to {K - 1} in y_{part}, found "
                f"{y.dtype} from {y.min()} to {y.max()} in {path}"
            )
    sizes = x_train.shape[1:], x_test.shape[1:]
    if sizes[0] != sizes[1]:
        raise SystemExit(
            f"--data: expected images of one size, found {sizes[0]} in x_train and "
            f"{sizes[1]} in x_test in {path}"
        )
    scale = x_train.max() or 1
    return (
        (x_train / scale).astype(np.float32),
        y_train,
        (x_test / scale).astype(np.float32),
        y_test,
    )


def load_npz(path):
    names = ("x_train", "y_train", "x_test", "y_test")
    if not path.is_file():
        raise SystemExit(f"--data: expected an .npz file, found no file {path}")
    try:
        archive = np.load(path)
        found = getattr(archive, "files", [])
        if set(names) <= set(found):
            return [archive[name] for name in names]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SystemExit(
            f"--data: expected an .npz file of plain arrays, found {path}: {error}"
        ) from error
    raise SystemExit(
        f"--data: expected the arrays {', '.join(names)} in {path}, found "
        f"{', '.join(found) or 'none'}"
    )


def make_problem(images, seed, steps, batch_size):
    """One seed: the split, the class weights and the batches of every step."""
    x, y, x_test, y_test = images
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    if x_test is None:  # 60 % for training, 20 % for validation, 20 % for the test
        test, val, train = np.split(order, [len(x) // 5, 2 * len(x) // 5])
        x_test, y_test = x[test], y[test]
    else:
        val, train = np.split(order, [len(x) // 12])
    epochs = -(-steps * batch_size // len(train))
    rows = np.concatenate([rng.permutation(train) for _ in range(epochs)])
    class_weights = rng.uniform(1, 1000, K).astype(np.float32)
    class_weights[LIGHT] = 1
    return SimpleNamespace(
        seed=seed,
        rng=rng,
        train=(jnp.asarray(x), jnp.asarray(y)),
        val=(x[val], y[val]),
        test=(x_test, y_test),
        rows=rows[: steps * batch_size].reshape(steps, batch_size),
        class_weights=class_weights,
    )
