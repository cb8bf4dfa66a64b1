"""What ``_weighting.method`` promises to the author of a method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from multiterm_optax import _weighting
from tests._asserts import assert_close, assert_identical, assert_zero

K = 3
PRESENT = np.array([True, False, True])
GRAMIAN = np.array([[4.0, np.nan, 1.0], [np.inf, np.nan, 2.0], [1.0, -np.inf, 9.0]])
LOSSES = np.array([2.0, np.nan, 5.0])


class Seen(NamedTuple):
    """The last problem, none of whose arrays is declared to belong to the terms."""

    gramian: jax.Array
    squared_norms: jax.Array
    losses: jax.Array
    share: jax.Array
    mean: jax.Array
    largest: jax.Array


def seeing():
    """A method that keeps what it is given, and gives every term its share."""

    def find(problem, state):
        del state
        share = jnp.asarray(1 / problem.num_present)
        mean, largest = problem.mean(problem.losses), problem.largest(problem.losses)
        read = problem.gramian, problem.squared_norms, problem.losses
        return jnp.full(K, share), Seen(*read, share, mean, largest)

    return _weighting.method(
        "seeing", lambda _: (), find, reads_gramian=True, reads_losses=True
    )


def test_the_problem_holds_nothing_of_absent_terms():
    weights, seen = seeing().update(GRAMIAN, (), losses=LOSSES, present=PRESENT)
    assert_close(weights, jnp.array([0.5, 0.0, 0.5]), rtol=1e-7)
    assert_identical(seen.gramian, jnp.array([[4.0, 0, 1], [0, 0, 0], [1, 0, 9]]))
    assert_identical(seen.squared_norms, jnp.array([4.0, 0.0, 9.0]))
    assert_identical(seen.losses, jnp.array([2.0, 0.0, 5.0]))
    assert (float(seen.share), float(seen.mean), float(seen.largest)) == (0.5, 3.5, 5)
    _, negative = seeing().update(GRAMIAN, (), losses=-LOSSES, present=PRESENT)
    assert float(negative.largest) == -2


def test_a_step_without_terms_divides_by_no_zero():
    none = np.zeros(K, bool)
    weights, seen = seeing().update(GRAMIAN, (), losses=LOSSES, present=none)
    assert_zero((weights, seen.gramian, seen.squared_norms, seen.losses, seen.mean))
    assert float(seen.share) == 1
    assert float(seen.largest) == -np.inf


def test_a_weighting_that_ignores_present_sees_zeros_for_absent_terms():
    # The losses can be computed, and their gradients are not zero: a term is absent
    # because the user says so.
    kept = mt.Weighting(
        lambda num_terms: jnp.zeros((num_terms, num_terms)),
        lambda gramian, state, **_: (jnp.ones(K), gramian),
    )
    rows = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]])
    grad = mt.value_and_weighted_grad(lambda w: rows @ w, kept)
    _, found, state = grad.update(grad.init(K), jnp.ones(2), present=PRESENT)
    assert_identical(state.weighting, jnp.array([[5.0, 0, 2], [0, 0, 0], [2, 0, 1]]))
    assert_identical(state.weights, jnp.array([1.0, 0.0, 1.0]))
    assert_identical(found, rows[0] + rows[2])


@pytest.mark.parametrize("wrap", ["reweight", "weighted"])
def test_a_weighting_that_ignores_present_sees_zero_losses_of_absent_terms(wrap):
    def shares(gramian, state, *, losses=None, **extra_args):
        del gramian, extra_args
        return losses / jnp.sum(losses), state

    own = mt.Weighting(lambda _: (), shares, reads_gramian=False, reads_losses=True)
    if wrap == "weighted":
        tx = mt.weighted(own, optax.sgd(-1.0), K)
    else:
        tx = mt.chain(mt.reweight(own, K), mt.sum_terms())
    grads = jnp.array([[7.0], [np.inf], [-7.0]])
    updates, _ = tx.update(
        grads, tx.init(jnp.zeros(1)), losses=jnp.asarray(LOSSES), present=PRESENT
    )
    assert_close(updates, jnp.array([2.0 - 5.0]), rtol=1e-6)
