"""Derivatives through a step, where terms or elements of them have no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_finite
from tests._params import some

K = 3
# One term is silent, and one element and one leaf have no gradient at all.
GRADS = {
    "w": np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [-3.0, 0.0, 0.5]]),
    "b": np.zeros((K, 2)),
}
PARAMS = {"w": np.zeros(3), "b": np.zeros(2)}
ALONG = {
    "w": np.array([[0.3, -1.0, 0.7], [1.1, 0.4, -0.2], [0.5, 0.9, -0.6]]),
    "b": np.array([[0.2, -0.8], [1.3, 0.1], [-0.4, 0.6]]),
}

# Smooth in the gradients, also where these are zero: x / (abs(x) + eps) and the like.
SMOOTH = {
    "scale_by_max_adam": lambda: mt.scale_by_max_adam(K, eps=0.5),
    "scale_by_max_adam, mean": lambda: mt.scale_by_max_adam(
        K, eps=0.5, reduction="mean"
    ),
    "adatask_adam": lambda: mt.adatask_adam(0.1, K, eps=0.5),
    "adatask_rmsprop": lambda: mt.adatask_rmsprop(0.1, K, eps=0.5),
    "adatask_rmsprop, eps inside": lambda: mt.adatask_rmsprop(
        0.1, K, eps=0.5, eps_in_sqrt=True
    ),
    "adatask_adagrad": lambda: mt.adatask_adagrad(0.1, K, eps=0.5),
    "ladatask_rmsprop": lambda: mt.ladatask_rmsprop(0.1, K, eps=0.5),
    "ladatask_rmsprop, eps inside": lambda: mt.ladatask_rmsprop(
        0.1, K, eps=0.5, eps_in_sqrt=True
    ),
}
# Their weights are constants: the derivative of the sum of the steps is the weights.
WEIGHTED = {
    "balance_by_norm": lambda: mt.balance_by_norm(K, groups="global"),
    "metabalance": lambda: mt.metabalance(optax.sgd(-1.0), K, groups="global"),
    "lr_annealing": lambda: mt.lr_annealing(K),
    "inverse_dirichlet": lambda: mt.inverse_dirichlet(K),
    "output_balance": lambda: mt.output_balance(K),
    "mgda": lambda: mt.weighted(mt.mgda(), optax.sgd(-1.0), K),
    "upgrad": lambda: mt.weighted(mt.upgrad(), optax.sgd(-1.0), K),
    "cagrad": lambda: mt.weighted(mt.cagrad(), optax.sgd(-1.0), K),
}
# What a weighting is given is a constant already: one of them by default.
MORE = {"upgrad", "cagrad"}


def total(tx, grads):
    """The sum of all updates of one step."""
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))


def moved(by):
    return jax.tree.map(lambda g, d: g + by * d, GRADS, ALONG)


@pytest.mark.parametrize("name", SMOOTH)
def test_is_the_limit_of_differences(x64, name):
    tx = SMOOTH[name]()
    value_and_derivative = jax.jit(jax.value_and_grad(lambda g: total(tx, g)))
    _, derivative = value_and_derivative(GRADS)
    derivative = jax.tree.map(np.asarray, derivative)
    assert_finite(derivative)
    found = sum(np.sum(derivative[leaf] * ALONG[leaf]) for leaf in ("w", "b"))
    step = 1e-7
    ends = [value_and_derivative(moved(by))[0] for by in (-step, step)]
    expected = np.diff(ends) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    some(WEIGHTED, WEIGHTED.keys() - MORE),
)
def test_is_the_weights_where_they_are_found(x64, name):
    tx = WEIGHTED[name]()
    both = jax.jit(jax.value_and_grad(lambda g: total(tx, g)))(GRADS)
    whole, derivative = jax.tree.map(np.asarray, both)
    assert_finite(derivative)
    # Each term alone gets one factor, the same in all of its elements.
    weights = derivative["w"][:, :1]
    expected = jax.tree.map(lambda g: np.broadcast_to(weights, g.shape), GRADS)
    assert_close(derivative, expected, rtol=1e-12)
    step = sum(np.sum(weights * g) for g in GRADS.values())
    np.testing.assert_allclose(step, whole, rtol=1e-12, atol=1e-15)


def test_mtadam_s_is_a_number_whatever_eps_is():
    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def derivatives(grads, scale, eps):
        scaled = jax.tree.map(lambda g: scale * g, grads)
        return total(mt.mtadam(0.1, K, eps=eps), scaled)

    for eps in (1e-8, 0.0):
        assert_finite(derivatives(GRADS, 1.0, eps))


def test_norms_and_cosines_of_a_silent_term_have_derivatives():
    def sizes(grads):
        return jnp.sum(mt.metrics.norms(grads)) + jnp.sum(mt.metrics.cosines(grads))

    assert_finite(jax.jit(jax.grad(sizes))(GRADS))
