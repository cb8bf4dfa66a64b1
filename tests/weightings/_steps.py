"""The programs of a weighting that the shared tests run, each compiled once.

Most of the time that these tests take is XLA's, and it grows with the number of
programs. All of them therefore run the same few, whose numbers are their arguments: the
update in float64 for some numbers of terms, and one in float32 for many problems of
three terms at once. Workers share them through the cache on disk.
"""

import functools

import jax
import numpy as np

from tests import _methods
from tests._asserts import CountedTraces

TERMS = 3
# As many problems as any test has at a time; fewer are repeated.
BATCH = 11


@functools.cache
def _update(name, at, x64):
    del x64  # a count of its own for each precision
    counted = CountedTraces(_methods.methods()[name].make(at).update)
    return counted, jax.jit(counted)


def update_of(name, at=TERMS):
    """The jitted update for the terms with the indices ``at``, or for a number.

    Returns how often it was traced, too. Where no argument says which term is which,
    all problems with as many terms share one program.
    """
    return _update(name, _indices(name, at), bool(jax.config.jax_enable_x64))


def _indices(name, at):
    indices = tuple(range(at)) if isinstance(at, int) else tuple(map(int, at))
    named = _methods.methods()[name].names_terms
    return indices if named else tuple(range(len(indices)))


@functools.cache
def _starts(terms, x64):
    """The states of all methods by one program; outside jit each would have several."""
    del x64
    made = {name: one.make(terms) for name, one in _methods.methods().items()}
    states = jax.jit(lambda: {name: one.init(terms) for name, one in made.items()})()
    return jax.tree.map(np.asarray, states)


def start_of(name, at=TERMS):
    """The state before the first step, as NumPy arrays."""
    method, indices = _methods.methods()[name], _indices(name, at)
    if method.names_terms:
        return jax.tree.map(np.asarray, method.make(indices).init(len(indices)))
    return _starts(len(indices), bool(jax.config.jax_enable_x64))[name]


def read(name, gramian, losses):
    """What a caller gives the weighting: only what it says that it reads."""
    method = _methods.methods()[name]
    return _methods.products(method, gramian), losses if method.reads_losses else None


@functools.cache
def _in_float32(name):
    update = _methods.build(name, TERMS).update
    # A caller may pass more than is read.
    more = functools.partial(update, value=1.0, something_else="x")
    step = jax.vmap(lambda state, seen, losses: more(seen, state, losses=losses))
    return jax.jit(step)


def repeated(values):
    """As many of them as there are in a batch, from the first on again."""
    values = np.asarray(values)
    return values[np.arange(BATCH) % len(values)]


def run_batch(name, gramians, losses):
    """Weights and states [runs, steps, ...] of at most BATCH runs in float32.

    ``gramians`` is [runs, steps, K, K] or broadcasts to that, ``losses`` is
    [runs, steps, K]. Both are given as they are, so that what a method does not read
    may hold anything.
    """
    method = _methods.methods()[name]
    losses = np.asarray(losses, np.float32)
    gramians = np.broadcast_to(gramians, (*losses.shape, TERMS)).astype(np.float32)
    products = _methods.products(method, gramians)
    if products is None:  # never looked at, and no other program than without it
        products = gramians
    runs, steps = losses.shape[:2]
    start = start_of(name)
    state = jax.tree.map(lambda leaf: np.stack([leaf] * BATCH), start)
    found = []
    for step in range(steps):
        seen, heard = repeated(products[:, step]), repeated(losses[:, step])
        weights, state = _in_float32(name)(state, seen, heard)
        found.append(jax.tree.map(np.asarray, (weights, state)))
    return jax.tree.map(lambda *x: np.stack(x, axis=1)[:runs], *found)
