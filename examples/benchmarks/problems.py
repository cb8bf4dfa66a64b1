"""What both frameworks train: the same parameters and batch, as NumPy arrays.

Parameters are a dict by the name that PyTorch gives them in ``theirs.py``; dense
weights are [in, out] and kernels [height, width, in, out], as JAX multiplies them.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Size(NamedTuple):
    """How big a model and its batch are; what a model does not have is 0."""

    batch: int
    width: int = 0
    depth: int = 0
    length: int = 0  # tokens in a sequence
    heads: int = 0
    pixels: int = 0  # side of an image


INPUTS = 64  # features of a row, for the MLP
VOCABULARY = 256
HEAD = 32  # width of the hidden layer of a head


def make_problem(model: str, size: Size, num_terms: int) -> tuple[Arrays, Arrays]:
    """Parameters and batch of ``model``, the same at every call."""
    makers = {
        "mlp": _mlp,
        "heads": _heads,
        "transformer": _transformer,
        "conv": _conv,
    }
    params, batch = makers[model](np.random.default_rng(0), size, num_terms)
    return {name: value.astype(np.float32) for name, value in params.items()}, batch


def count(params: dict[str, Any]) -> int:
    return sum(math.prod(value.shape) for value in params.values())


def _dense(rng, name: str, fan_in: int, fan_out: int, gain: float = 2.0) -> Arrays:
    weight = rng.normal(size=(fan_in, fan_out)) * math.sqrt(gain / fan_in)
    return {f"{name}.weight": weight, f"{name}.bias": np.zeros(fan_out)}


def _targets(rng, size: Size, num_terms: int) -> np.ndarray:
    return rng.normal(size=(size.batch, num_terms)).astype(np.float32)


def _mlp(rng, size: Size, num_terms: int) -> tuple[Arrays, Arrays]:
    """A stack of dense layers; term k is the squared error of output k."""
    widths = [INPUTS, *[size.width] * size.depth, num_terms]
    params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        params |= _dense(rng, f"layers.{i}", fan_in, fan_out)
    rows = rng.normal(size=(size.batch, INPUTS)).astype(np.float32)
    return params, {"x": rows, "y": _targets(rng, size, num_terms)}


def _heads(rng, size: Size, num_terms: int) -> tuple[Arrays, Arrays]:
    """A trunk of dense layers, and for each term a head of two layers on top of it."""
    widths = [INPUTS, *[size.width] * size.depth]
    params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        params |= _dense(rng, f"trunk.{i}", fan_in, fan_out)
    for k in range(num_terms):
        params |= _dense(rng, f"heads.{k}.0", size.width, HEAD)
        params |= _dense(rng, f"heads.{k}.1", HEAD, 1)
    rows = rng.normal(size=(size.batch, INPUTS)).astype(np.float32)
    return params, {"x": rows, "y": _targets(rng, size, num_terms)}


def _transformer(rng, size: Size, num_terms: int) -> tuple[Arrays, Arrays]:
    """An encoder, mean over the tokens, K outputs; terms as for the MLP."""
    width = size.width
    params = {
        "tokens.weight": rng.normal(size=(VOCABULARY, width)) * 0.5,
        "places.weight": rng.normal(size=(size.length, width)) * 0.5,
    }

    def norm(name: str) -> Arrays:
        return {f"{name}.weight": np.ones(width), f"{name}.bias": np.zeros(width)}

    for i in range(size.depth):
        params |= norm(f"blocks.{i}.norm1")
        params |= _dense(rng, f"blocks.{i}.qkv", width, 3 * width, gain=1.0)
        params |= _dense(rng, f"blocks.{i}.out", width, width, gain=0.5)
        params |= norm(f"blocks.{i}.norm2")
        params |= _dense(rng, f"blocks.{i}.up", width, 4 * width)
        params |= _dense(rng, f"blocks.{i}.down", 4 * width, width, gain=0.5)
    params |= norm("norm") | _dense(rng, "head", width, num_terms, gain=1.0)
    tokens = rng.integers(0, VOCABULARY, (size.batch, size.length)).astype(np.int32)
    return params, {"x": tokens, "y": _targets(rng, size, num_terms)}


def _conv(rng, size: Size, num_terms: int) -> tuple[Arrays, Arrays]:
    """The network of PyTorch's MNIST example, without dropout; a term for each class.

    Term k is the mean cross entropy of the rows of class k: each row belongs to one
    term. Images are noise; what is in them does not change the work.
    """

    def kernel(name: str, fan_in: int, fan_out: int) -> Arrays:
        weight = rng.normal(size=(3, 3, fan_in, fan_out)) * math.sqrt(2 / (9 * fan_in))
        return {f"{name}.weight": weight, f"{name}.bias": np.zeros(fan_out)}

    side = (size.pixels - 4) // 2
    params = kernel("conv1", 1, 32) | kernel("conv2", 32, 64)
    params |= _dense(rng, "fc1", 64 * side * side, 128)
    params |= _dense(rng, "fc2", 128, num_terms, gain=1.0)
    images = rng.normal(size=(size.batch, size.pixels, size.pixels, 1))
    # Every class has a row: a class without one is no question of speed.
    labels = np.arange(size.batch) % num_terms
    rest = rng.integers(0, num_terms, size.batch - min(size.batch, num_terms))
    labels[size.batch - len(rest) :] = rest
    labels = rng.permutation(labels).astype(np.int32)
    return params, {"x": images.astype(np.float32), "y": labels}
