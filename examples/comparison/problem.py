"""What a problem is, and what several of them are made of."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EXAMPLES = Path(__file__).resolve().parent.parent


class Problem(NamedTuple):
    name: str
    measure: str  # what the score is
    num_terms: int
    steps: int
    make_data: Callable[[int], dict[str, Any]]  # seed -> train, validation, test
    init_params: Callable[[Any], Any]  # seed, which may be traced -> parameters
    draw: Callable[[jax.Array, Any], Any]  # key, train -> batch
    losses_fn: Callable[[Any, Any], jax.Array]  # parameters, batch -> [K]
    score: Callable[[Any, Any], jax.Array]  # parameters, validation or test -> error
    undo: Any = None  # weights [K] that undo a scaling by hand; no method gets them


def borrowed(name: str) -> Any:
    """A module of the examples or of the reproductions, whose neighbours it finds."""
    for folder in (EXAMPLES, EXAMPLES / "reproductions"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(name)


def rows(size: int) -> Callable[[jax.Array, Any], Any]:
    """Draws so many rows of every array, with replacement."""

    def draw(key, train):
        total = jax.tree.leaves(train)[0].shape[0]
        chosen = jax.random.randint(key, (size,), 0, total)
        return jax.tree.map(lambda part: part[chosen], train)

    return draw


def dense_init(seed, sizes):
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {"w": jax.random.normal(key, (n, m)) / np.sqrt(n), "b": jnp.zeros(m)}
        for key, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def dense(params, x):
    *hidden, last = params
    for layer in hidden:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def equation(
    make: Callable[[], Any], name: str, steps: int, width: int = 20
) -> Problem:
    """A differential equation; its solution at some points is the validation part."""
    source = make()
    order = np.random.default_rng(0).permutation(len(source.grid))
    held, tested = np.split(order, [len(order) // 4])
    parts = {
        "train": (),
        "validation": (source.grid[held], source.solution[held]),
        "test": (source.grid[tested], source.solution[tested]),
    }

    def score(params, part):
        points, true = part
        error = source.predict(params, points) - true
        return jnp.linalg.norm(error) / jnp.linalg.norm(true)

    return Problem(
        name=name,
        measure="relative L2",
        num_terms=len(source.terms),
        steps=steps,
        make_data=lambda seed: parts,
        init_params=lambda seed: source.init_params(jax.random.key(seed), width=width),
        draw=lambda key, train: source.sample(key),
        losses_fn=source.losses_fn,
        score=score,
    )
