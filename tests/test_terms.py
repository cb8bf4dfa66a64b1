"""Mixing matrices: a row is a new term, in old ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import pcgrad, reweight, sum_terms, weighted
from tests._asserts import assert_close
from tests.references import pcgrad as reference

SHAPES = {"w": (2, 3), "b": (), "v": (4,)}


def conflicting(terms):
    """Gradients of unequal lengths, each opposed to each other one, in a few leaves."""
    rng = np.random.default_rng(terms)
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    # Equal angles as wide as they can be, then turned, scaled and moved a little.
    simplex = np.eye(terms) - 1 / terms + 0.05 * rng.normal(size=(terms, terms))
    turned = simplex @ np.linalg.qr(rng.normal(size=(size, size)))[0][:terms]
    rows = turned * (1 + np.arange(terms))[:, None]
    products = rows @ rows.T
    assert np.all(products[~np.eye(terms, dtype=bool)] < 0)
    return rows


def leaves_of(rows):
    """Rows [..., P] cut into the leaves of SHAPES."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    parts = np.split(rows, ends[:-1], axis=-1)
    return {
        name: part.reshape((*rows.shape[:-1], *shape))
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def first_step(tx, grads):
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    grads = jax.tree.map(jnp.asarray, grads)
    return tx.update(grads, tx.init(params), params)


@pytest.mark.parametrize("terms", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("x64")
def test_weighted_is_the_chain_of_reweight_and_sum_terms(terms):
    rows = conflicting(terms)
    key = jax.random.key(7)
    at_once = weighted(pcgrad(key), optax.sgd(1.0), terms)
    chain = optax.chain(reweight(pcgrad(key), terms), sum_terms(), optax.sgd(1.0))
    both = jax.jit(lambda grads: [first_step(tx, grads) for tx in (at_once, chain)])
    (updates, state), (expected, chain_state) = both(leaves_of(rows))
    assert_close(updates, expected, rtol=1e-13)
    # The sum of the mixed terms, in NumPy: the matrix is far from symmetric.
    mixing = np.asarray(state.reweight.weights)
    assert_close(chain_state[0].weights, state.reweight.weights, rtol=1e-14)
    assert np.abs(mixing - mixing.T).max() > 0.5
    assert_close(updates, leaves_of(-(mixing @ rows).sum(axis=0)), rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_weighted_takes_a_step_of_the_paper():
    rows = conflicting(3)
    orders = itertools.product(itertools.permutations(range(3)), repeat=3)
    steps = np.array([-reference.surgery(rows, one).sum(axis=0) for one in orders])

    @jax.jit
    @jax.vmap
    def step(seed):
        tx = weighted(pcgrad(jax.random.key(seed)), optax.sgd(1.0), 3)
        return first_step(tx, leaves_of(rows))[0]

    updates = step(np.arange(4))
    leaves = [np.reshape(updates[name], (4, -1)) for name in SHAPES]
    for found in np.concatenate(leaves, axis=1):
        apart = np.abs(steps - found).max(axis=1)
        assert apart.min() < 1e-13 * np.abs(found).max()
