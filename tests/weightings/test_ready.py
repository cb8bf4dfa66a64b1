"""``ready`` is honoured wherever it stands in the state of a weighting."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_zero

# Three terms that agree, and three of which the first two are opposed.
AGREED = np.float32([[1.0, 0.0], [0.9, 0.1], [1.0, 0.2]])
OPPOSED = np.float32([[1.0, 0.0], [-1.0, 0.1], [1.0, 0.2]])
WITHOUT_THE_LAST = np.array([True, True, False])
# That this is what None means is said in test_absent.py.
ALL = np.ones(3, bool)


class Halved(NamedTuple):
    """State of :func:`halved`, which itself never asks for a step to be skipped."""

    ready: jax.Array
    of: list[Any]


def halved(inner):
    """As a user may write it: half the weights of another, whose state it nests."""

    def init(num_terms):
        return Halved(jnp.ones([], bool), [inner.init(num_terms)])

    def update(gramian, state, *, losses=None, present=None, **extra_args):
        weights, within = inner.update(
            gramian, state.of[0], losses=losses, present=present, **extra_args
        )
        return weights / 2, state._replace(of=[within])

    return mt.Weighting(init, update)


NESTED = {
    "composed": lambda eps: mt.compose(mt.by_norm(), mt.inexact_mgda(eps)),
    "of a user": lambda eps: halved(mt.inexact_mgda(eps)),
    "composed of both": lambda eps: mt.compose(
        mt.compose(mt.equal(), halved(mt.inexact_mgda(eps))), mt.constant([3.0, 2, 1])
    ),
}
each_nesting = pytest.mark.parametrize(
    "nesting",
    [
        # It holds the two others.
        pytest.param(n, marks=[] if n == "composed of both" else pytest.mark.slow)
        for n in NESTED
    ],
)


@each_nesting
def test_weighted_skips_the_step(nesting):
    tx = mt.weighted(NESTED[nesting](0.1), optax.adam(0.1), 3)
    update = jax.jit(tx.update)
    params = np.ones(2, np.float32)
    state = tx.init(params)
    for grads, present, taken in [
        (AGREED, ALL, True),
        (OPPOSED, ALL, False),
        (OPPOSED, WITHOUT_THE_LAST, False),
        (AGREED, WITHOUT_THE_LAST, True),
    ]:
        updates, after = update(grads, state, params, present=present)
        if taken:
            # Adam has counted the step, and takes its full length in some direction.
            counts = [int(optax.tree.get(s, "count")) for s in (state, after)]
            assert counts[1] == counts[0] + 1
            assert np.max(np.abs(updates)) > 0.05
        else:
            assert_zero(updates)
            assert_identical(after.inner, state.inner)
        state = after


@each_nesting
def test_held_weights_of_a_skipped_step_are_zero(nesting):
    # Linear losses: the rows are their gradients.
    grad = mt.value_and_weighted_grad(
        lambda w, rows: rows @ w, NESTED[nesting](0.1), every=2
    )
    update = jax.jit(grad.update)
    w = np.ones(2, np.float32)
    _, found, first = update(grad.init(3), w, AGREED, present=ALL)
    weights = np.asarray(first.weights)
    assert np.sum(weights) > 0.1  # the step is taken
    assert_close(found, weights @ AGREED, rtol=1e-6)
    _, _, held = update(first, w, AGREED, present=ALL)
    assert_identical(held.weights, weights)

    # A step that is taken keeps the weights of the term that is absent from it ...
    _, found, taken = update(held, w, AGREED, present=WITHOUT_THE_LAST)
    later = np.asarray(taken.weights)
    assert_identical(later[2], weights[2])
    assert_close(found, later[:2] @ AGREED[:2], rtol=1e-6)

    # ... and one that is skipped drops them, so that the held steps are skipped too.
    _, found, skipped = update(held, w, OPPOSED, present=WITHOUT_THE_LAST)
    assert_zero((found, skipped.weights))
    _, found, after = update(skipped, w, AGREED, present=ALL)
    assert_zero((found, after.weights))
