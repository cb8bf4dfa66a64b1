"""A small problem of K terms, stated once for NumPy and for JAX.

Term i pulls leaf p of the parameters towards its own target with its own curvature,
and noise moves the target at every step:
``g = size[i] * awake[t, i] * (curvature * (theta - target) + noise[t])``.
Sizes span six orders of magnitude. Terms sleep (exact zeros) in the first steps, in
the middle or for ever in a leaf, as the rows of ``awake`` say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

SHAPES = ((), (4,), (2, 3, 2), (3,))
HEAD = 3  # the leaf that only the last term touches
# The groups that methods are compared in: the argument, and the leaves of each.
GROUPS = {
    "leaf": ("leaf", [[0], [1], [2], [3]]),
    "global": ("global", [[0, 1, 2, 3]]),
    "labels": (("a", "b", "a", "c"), [[0, 2], [1], [3]]),
}


def sizes(*default, slow=()):
    """Numbers of terms to try; those that are ``slow`` only by ``-m slow``.

    Each of them compiles programs of its own, and what holds for one number of terms
    seldom fails for another.
    """
    marks = dict.fromkeys(slow, pytest.mark.slow)
    numbers = sorted({*default, *slow})
    return [pytest.param(number, marks=marks.get(number, [])) for number in numbers]


class Pulls:
    """K quadratic terms over the leaves of SHAPES, for a number of steps."""

    def __init__(self, terms, steps, seed=0):
        rng = np.random.default_rng(seed)
        self.terms, self.steps = terms, steps
        self.start = [rng.normal(size=shape) for shape in SHAPES]
        self.size = 10.0 ** rng.uniform(-3, 3, size=terms)
        self.curvature = [rng.uniform(0.5, 2, size=(terms, *s)) for s in SHAPES]
        self.target = [rng.normal(size=(terms, *s)) for s in SHAPES]
        self.noise = [rng.normal(size=(steps, terms, *s)) for s in SHAPES]
        self.awake = [self._awake(rng, leaf) for leaf in range(len(SHAPES))]

    def _awake(self, rng, leaf):
        awake = np.ones((self.steps, self.terms))
        if self.terms == 1:
            return awake
        awake[10:13, 0] = 0  # the first term, the default anchor, pauses
        awake[:7, self.terms - 1] = 0  # the last one wakes late
        if leaf == 1:
            awake[:2] = 0  # nobody touches this leaf at first
            awake[2:5, 0] = 0  # then all but the first term
        if leaf == 2:
            awake[rng.random((self.steps, self.terms)) < 0.3] = 0
        if leaf == HEAD:
            awake[:, :-1] = 0
        return awake

    def numpy_gradients(self, t, theta):
        """Gradients by term and leaf at step t = 1, 2, ..., as the papers count."""
        return [
            [
                self.size[i]
                * self.awake[p][t - 1, i]
                * (
                    self.curvature[p][i] * (theta[p] - self.target[p][i])
                    + self.noise[p][t - 1, i]
                )
                for p in range(len(SHAPES))
            ]
            for i in range(self.terms)
        ]

    def stacked_gradients(self, theta, noise, awake):
        """The same for JAX, leaves [K, *p], from one step's noise and rows."""

        def one_leaf(x, curvature, target, noise, awake):
            over = (-1,) + (1,) * x.ndim
            lead = (self.size * awake).reshape(over)
            return lead * (curvature * (x[None] - target) + noise)

        curvature, target = tuple(self.curvature), tuple(self.target)
        return jax.tree.map(one_leaf, theta, curvature, target, noise, awake)

    def run(self, optimizer):
        """Parameters after every step of an optimizer: leaves [steps, *p]."""

        def step(carry, data):
            theta, state = carry
            grads = self.stacked_gradients(theta, *data)
            updates, state = optimizer.update(grads, state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), theta

        @jax.jit
        def descend(theta, *data):
            return jax.lax.scan(step, (theta, optimizer.init(theta)), data)[1]

        start, *data = self.start, self.noise, self.awake
        given = jax.tree.map(jnp.asarray, (tuple(start), *map(tuple, data)))
        return jax.tree.map(np.asarray, descend(*given))

    def deviation(self, history, reference):
        """Largest error over steps and leaves, relative to how far a leaf has moved."""
        largest = 0.0
        for t, expected in enumerate(reference):
            for p, start in enumerate(self.start):
                gaps = np.abs(history[p][t] - expected[p])
                moved = np.max(np.abs(expected[p] - start))
                if moved == 0:
                    assert not gaps.any(), f"step {t}, leaf {p}: moved, no gradient"
                else:
                    # Where terms cancel, a leaf moves by little more than its last bit.
                    gaps = gaps - np.spacing(np.abs(expected[p]))
                    largest = max(largest, np.max(gaps) / moved)
        assert np.isfinite(largest)
        return largest
