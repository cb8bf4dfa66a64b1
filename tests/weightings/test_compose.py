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
    return jnp.diag(weights) if weights.ndim == 1 else weights


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

    @jax.jit
    def both(grads, state, states, losses, present):
        found, state = whole.update(grads, state, losses=losses, present=present)
        total, later = np.eye(K), []
        for stage, before in zip(stages, states, strict=True):
            grads, after = stage.update(grads, before, losses=losses, present=present)
            matrix = as_matrix(after.weights)
            total, losses = matrix @ total, matrix @ losses
            later.append(after)
        return found, as_matrix(state.weights), grads, total, state, later

    params = {"a": np.zeros(4), "b": np.zeros((2, 3))}
    state, states = whole.init(params), [stage.init(params) for stage in stages]
    masks = [None] * 4
    if masked:
        masks = [np.array(m, bool) for m in ([1] * 3, [1, 1, 0], [0, 0, 0], [0, 1, 1])]
    grads, losses = conflicting(4)
    for t, present in enumerate(masks):
        given = {name: leaf[t] for name, leaf in grads.items()}
        found, weights, expected, total, state, states = both(
            given, state, states, losses[t], present
        )
        assert_close(found, expected, rtol=1e-9)
        assert_close(weights, total, rtol=1e-9)


def test_weights_first_and_one_backward_pass(x64):
    def losses_fn(p, x):
        return {
            "a": jnp.sum((x @ p - 1) ** 2),
            "b": 50 * jnp.sum(jnp.sin(p) ** 2),
            "c": 0.1 * jnp.sum(p[0] - p[1]) ** 2,
        }

    weighting = mt.compose(mt.by_norm(0.5), mt.pcgrad(jax.random.key(0)))
    p, x = np.array([0.3, -0.2]), np.array([[1.0, 2.0], [0.5, -1.0]])
    first = mt.value_and_weighted_grad(losses_fn, weighting)
    behind = optax.chain(mt.reweight(weighting, K), mt.sum_terms())

    @jax.jit
    def both(state, other, p):
        losses, found, state = first.update(state, p, x)
        _, grads = mt.value_and_term_grads(losses_fn)(p, x)
        expected, other = behind.update(grads, other, losses=losses)
        return found, expected, state, other

    state, other = first.init(K), behind.init(p)
    for _ in range(3):
        found, expected, state, other = both(state, other, p)
        assert_close(found, expected, rtol=1e-9)
        p = p - 0.01 * np.asarray(found)


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
    state, update = weighting.init(K), jax.jit(weighting.update)
    for losses in ([1.0, 4.0, 2.0], [0.5, 4.0, 1.0]):
        weights, state = update(None, state, losses=np.float32(losses))
    assert_close(weights, np.array([1.0, 1.0, 0.5]), rtol=1e-6)


def test_one_composition_within_another():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(K, 5)) * np.array([[1.0], [9.0], [0.1]])
    gramian = np.float32(rows @ rows.T)
    parts = mt.by_norm(), mt.constant([1.0, 2.0, 3.0]), mt.upgrad()
    flat = mt.compose(*parts)
    nested = mt.compose(mt.compose(*parts[:2]), parts[2])
    both = jax.jit(lambda c: [w.update(c, w.init(K))[0] for w in (flat, nested)])
    assert_identical(*both(gramian))


def test_a_part_may_ask_for_the_step_to_be_skipped():
    weighting = mt.compose(mt.by_norm(), mt.inexact_mgda(1e9))
    tx = mt.weighted(weighting, optax.adam(0.1), K)
    params = np.ones(2, np.float32)
    state = tx.init(params)
    grads = np.ones((K, 2), np.float32)
    updates, after = jax.jit(tx.update)(grads, state, params)
    assert_zero(updates)
    assert_identical(after.inner, state.inner)


def test_a_loss_without_weight_may_be_infinite():
    weighting = mt.compose(mt.constant([1.0, 0.0]), mt.dwa())
    state = weighting.init(2)
    update, losses = jax.jit(weighting.update), np.float32([1.0, np.inf])
    for _ in range(4):
        weights, state = update(None, state, losses=losses)
    assert_identical(weights, np.array([1.0, 0.0]))


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
