"""Weightings one after another, against one stage after another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_message, assert_zero
from tests._methods import Method

K = 3


def norms_then_projections():
    return mt.compose(mt.by_norm(0.5), mt.upgrad())


METHODS = {
    "compose": Method(
        norms_then_projections, anchored=True, invariant=True, digits=1e-6
    ),
    "compose, mixing": Method(
        lambda key: mt.compose(mt.lbtw(), mt.pcgrad(key), mt.mgda()),
        {"key": lambda terms: jax.random.key(1)},
    ),
}

CHAINS = {
    "weights": lambda: (mt.by_norm(0.5), mt.mgda()),
    "a matrix first": lambda: (mt.pcgrad(jax.random.key(0)), mt.cagrad()),
    "a matrix last": lambda: (mt.dwa(), mt.pcgrad(jax.random.key(0))),
    "two matrices": lambda: (
        mt.pcgrad(jax.random.key(0)),
        mt.pcgrad(jax.random.key(1)),
    ),
    "norms alone": lambda: (mt.constant([1.0, 9.0, 0.2]), mt.by_norm(0.5)),
    "norms of a mixture": lambda: (mt.pcgrad(jax.random.key(0)), mt.by_norm(0.9)),
    "losses of a mixture": lambda: (mt.pcgrad(jax.random.key(0)), mt.mgda("loss")),
    "three": lambda: (mt.constant([1.0, 9.0, 0.2]), mt.by_norm(), mt.upgrad()),
}


def conflicting(steps, seed=0):
    """Gradients [steps, K, *p] that conflict, on scales of their own, and losses."""
    rng = np.random.default_rng(seed)
    sizes = np.array([1.0, 40.0, 0.3])
    grads = {
        "a": rng.normal(size=(steps, K, 4)) * sizes[:, None],
        "b": rng.normal(size=(steps, K, 2, 3)) * sizes[:, None, None],
    }
    return grads, np.exp(rng.normal(size=(steps, K)))


def as_matrix(weights):
    weights = np.asarray(weights)
    return np.diag(weights) if weights.ndim == 1 else weights


# By default one that reads norms, one that mixes in between, and the longest.
FEW = {"norms alone", "losses of a mixture", "three"}


@pytest.mark.parametrize(
    ("chain", "masked"),
    [
        # That a mask of all terms is none is said in test_absent.py.
        pytest.param(c, masked, marks=[] if c in FEW and masked else pytest.mark.slow)
        for c in CHAINS
        for masked in (False, True)
    ],
)
def test_it_is_one_reweight_after_another(x64, chain, masked):
    parts = CHAINS[chain]()
    whole = mt.reweight(mt.compose(*parts), K)
    stages = [mt.reweight(part, K) for part in parts]
    params = {"a": jnp.zeros(4), "b": jnp.zeros((2, 3))}
    state, states = whole.init(params), [stage.init(params) for stage in stages]
    update, updates = jax.jit(whole.update), [jax.jit(s.update) for s in stages]
    masks = [None] * 4
    if masked:
        masks = [np.array(m, bool) for m in ([1] * 3, [1, 1, 0], [0, 0, 0], [0, 1, 1])]
    grads, losses = conflicting(4)
    for t, present in enumerate(masks):
        given = jax.tree.map(lambda g, t=t: jnp.asarray(g[t]), grads)
        found, state = update(given, state, losses=losses[t], present=present)
        expected, left = given, losses[t]
        total = np.eye(K)
        for i, one in enumerate(updates):
            expected, states[i] = one(expected, states[i], losses=left, present=present)
            matrix = as_matrix(states[i].weights)
            total, left = matrix @ total, matrix @ left
        assert_close(found, expected, rtol=1e-9)
        assert_close(as_matrix(state.weights), total, rtol=1e-9)


def test_weights_first_and_one_backward_pass(x64):
    def losses_fn(p, x):
        return {
            "a": jnp.sum((x @ p - 1) ** 2),
            "b": 50 * jnp.sum(jnp.sin(p) ** 2),
            "c": 0.1 * jnp.sum(p[0] - p[1]) ** 2,
        }

    weighting = mt.compose(mt.by_norm(0.5), mt.pcgrad(jax.random.key(0)))
    p, x = jnp.array([0.3, -0.2]), jnp.array([[1.0, 2.0], [0.5, -1.0]])
    first = mt.value_and_weighted_grad(losses_fn, weighting)
    behind = optax.chain(mt.reweight(weighting, K), mt.sum_terms())
    state, other = first.init(K), behind.init(p)
    for _ in range(3):
        losses, found, state = first.update(state, p, x)
        _, grads = mt.value_and_term_grads(losses_fn)(p, x)
        expected, other = behind.update(grads, other, losses=losses)
        assert_close(found, expected, rtol=1e-9)
        p = p - 0.01 * found


def test_it_reads_what_its_parts_read():
    def reads(*parts):
        made = mt.compose(*parts)
        return made.reads_gramian, made.reads_norms, made.reads_losses

    assert reads(mt.equal(), mt.constant([1.0, 2.0])) == (False, False, False)
    assert reads(mt.by_norm(), mt.dwa()) == (False, True, True)
    assert reads(mt.dwa(), mt.mgda()) == (True, False, True)
    assert reads(mt.gradnorm(), mt.pcgrad(jax.random.key(0))) == (True, True, True)


def test_a_composition_of_losses_alone_needs_no_gradients():
    weighting = mt.compose(mt.constant([2.0, 1.0, 1.0]), mt.lbtw(1.0))
    state = weighting.init(K)
    for losses in ([1.0, 4.0, 2.0], [0.5, 4.0, 1.0]):
        weights, state = weighting.update(None, state, losses=jnp.array(losses))
    assert_close(weights, jnp.array([1.0, 1.0, 0.5]), rtol=1e-6)


def test_one_composition_within_another():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(K, 5)) * np.array([[1.0], [9.0], [0.1]])
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    parts = mt.by_norm(), mt.constant([1.0, 2.0, 3.0]), mt.upgrad()
    flat = mt.compose(*parts)
    nested = mt.compose(mt.compose(*parts[:2]), parts[2])
    found, _ = flat.update(gramian, flat.init(K))
    expected, _ = nested.update(gramian, nested.init(K))
    assert_identical(found, expected)


def test_a_part_may_ask_for_the_step_to_be_skipped():
    weighting = mt.compose(mt.by_norm(), mt.inexact_mgda(1e9))
    tx = mt.weighted(weighting, optax.adam(0.1), K)
    params = jnp.ones(2)
    state = tx.init(params)
    updates, after = tx.update(jnp.ones((K, 2)), state, params)
    assert_zero(updates)
    assert_identical(after.inner, state.inner)


def test_a_loss_without_weight_may_be_infinite():
    weighting = mt.compose(mt.constant([1.0, 0.0]), mt.dwa())
    state = weighting.init(2)
    for _ in range(4):
        weights, state = weighting.update(None, state, losses=jnp.array([1.0, jnp.inf]))
    assert_identical(weights, jnp.array([1.0, 0.0]))


def test_extra_arguments_reach_the_part_that_reads_them():
    def update(gramian, state, *, losses=None, present=None, bonus=None, **extra_args):
        del gramian, losses, present, extra_args
        return jnp.full(2, 1.0 if bonus is None else bonus), state

    own = mt.Weighting(lambda num_terms: (), update, reads_gramian=False)
    weighting = mt.compose(mt.constant([1.0, 3.0]), own)
    weights, _ = weighting.update(None, weighting.init(2), bonus=2.0)
    assert_identical(weights, jnp.array([2.0, 6.0]))
    # Through value_and_weighted_grad, whose arguments are the losses' own else.
    grad = mt.value_and_weighted_grad(lambda w: jnp.stack([w, w**2]), weighting)
    _, found, _ = grad.update(grad.init(2), jnp.array(5.0), bonus=2.0)
    assert_identical(found, jnp.array(2.0 + 6.0 * 10.0))


@pytest.mark.usefixtures("own_errors")
def test_what_is_refused():
    with pytest.raises(ValueError, match="weightings must hold") as error:
        mt.compose()
    assert_message(error.value, "compose:", "found ()")
    with pytest.raises(TypeError, match="Weighting") as error:
        mt.compose(mt.equal(), mt.mgda)
    assert_message(error.value, "compose: weightings[1]", "did you mean mgda()")

    def mixes(gramian, state, *, losses=None, **extra_args):
        return jnp.eye(2), state

    own = mt.Weighting(lambda num_terms: (), mixes, reads_gramian=False)
    weighting = mt.compose(own, mt.by_norm())
    with pytest.raises(ValueError, match="norms") as error:
        weighting.update(jnp.ones(2), weighting.init(2))
    assert_message(error.value, "compose: weightings[1]", "mixes the terms")
