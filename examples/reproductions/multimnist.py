"""MultiMNIST: two overlapping digits in one image, one term for each of them."""

import mnist
import numpy as np

SIDE, SHIFT = 28, 4


def load(count=10_000, test=5_000, seed=0, path=None, stand_in=False):
    """Images [N, 28, 28] in [0, 1] and labels [N, 2], for training and for the test.

    Labels are those of the digit in the upper left and of the one in the lower right.
    No digit is used twice as long as there are enough: 60,000 for training, 10,000 for
    the test, two an image. As a ``stand_in``, pairs of scikit-learn's digits.
    """
    x, y, x_test, y_test = mnist.load(path, stand_in)
    rng = np.random.default_rng(seed)
    train = overlay(x, y, count, rng)
    return *train, *overlay(x_test, y_test, test, rng)


def overlay(images, labels, count, rng):
    """Pairs of digits drawn at random, one shifted up and left, one down and right."""
    rounds = -(-2 * count // len(images))
    drawn = np.concatenate([rng.permutation(len(images)) for _ in range(rounds)])
    pairs = drawn[: 2 * count].reshape(count, 2)
    wide = SIDE + 2 * SHIFT
    canvas = np.zeros((count, wide, wide), np.float32)
    canvas[:, :SIDE, :SIDE] = images[pairs[:, 0]]
    corner = canvas[:, -SIDE:, -SIDE:]
    np.maximum(corner, images[pairs[:, 1]], out=corner)
    shrink = shrinking(wide, SIDE)
    return shrink @ canvas @ shrink.T, labels[pairs]


def shrinking(long, short):
    """Matrix [short, long]: each new pixel is the mean of what it covers."""
    edges = np.linspace(0, long, short + 1)[:, None]
    pixels = np.arange(long)
    covered = np.clip(edges, pixels, pixels + 1)
    shares = np.diff(covered, axis=0) * short / long
    return shares.astype(np.float32)
