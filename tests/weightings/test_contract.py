"""What every exported weighting keeps to, whatever the method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import reweight
from tests import _methods
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_finite,
    assert_message,
    assert_same_signature,
    assert_single_trace,
    assert_strong_types,
)

STEPS = 6

each_weighting = pytest.mark.parametrize("name", _methods.factories())
build = _methods.build


def problem(terms, dtype=np.float32, steps=STEPS):
    """Gramians [steps, K, K] and positive losses [steps, K]."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(steps, terms, terms + 5)) + rng.normal(size=terms + 5)
    rows *= np.exp(rng.normal(size=terms))[:, None]
    losses = np.exp(rng.normal(size=(steps, terms)))
    gramians = np.einsum("tip,tjp->tij", rows, rows)
    return gramians.astype(dtype), losses.astype(dtype)


def read(name, gramian, losses):
    """What a caller gives the weighting: only what it says that it reads."""
    method = _methods.methods()[name]
    products = _methods.products(method, gramian)
    return products, losses if method.make(3).reads_losses else None


@functools.cache
def _compiled(name, terms, x64):
    del x64  # a program of its own for each precision
    counted = CountedTraces(build(name, terms).update)
    return counted, jax.jit(counted)


def compiled(name, terms):
    """The jitted update, compiled once for all the tests that give it what it reads."""
    return _compiled(name, terms, bool(jax.config.jax_enable_x64))


def run(name, gramians, losses, update=None, weighting=None):
    """Weights of every step and every state, the first one included."""
    weighting = weighting or build(name, losses.shape[1])
    update = update or weighting.update
    states, history = [weighting.init(losses.shape[1])], []
    for gramian, loss in zip(gramians, losses, strict=True):
        seen, heard = read(name, gramian, loss)
        weights, state = update(seen, states[-1], losses=heard)
        history.append(weights)
        states.append(state)
    return np.stack(history), states


def test_every_weighting_is_found():
    assert _methods.factories().keys() >= {
        "by_norm",
        "compose",
        "constant",
        "dwa",
        "equal",
        "gradnorm",
        "inexact_mgda",
        "lbtw",
        "mgda",
        "softadapt",
        "uncertainty",
    }


@each_weighting
@pytest.mark.parametrize(
    ("terms", "dtype"),
    [
        (1, "float32"),
        (3, "float32"),
        (3, "float64"),
        pytest.param(64, "float32", marks=pytest.mark.slow),
    ],
)
def test_shapes_and_a_stable_state(name, terms, dtype):
    with jax.enable_x64(dtype == "float64"):
        gramians, losses = problem(terms, dtype)
        counted, update = compiled(name, terms)
        weights, states = run(name, gramians, losses, update)
        assert weights.shape[1:] in ((terms,), (terms, terms))
        assert weights.dtype == dtype
        assert_finite(weights)
        assert_strong_types(states[0])
        for state in states[1:]:
            assert_same_signature(state, states[0])
            assert_finite(state)
        assert_single_trace(counted)


@each_weighting
@pytest.mark.usefixtures("x64")
def test_one_program_whether_eager_jitted_or_scanned(name):
    weighting = build(name, 3)
    # Eager steps of a solver are slow; methods that keep losses need some steps.
    steps = STEPS if weighting.reads_losses else 2
    gramians, losses = problem(3, np.float64, steps)
    eager, states = run(name, gramians, losses)
    jitted, _ = run(name, gramians, losses, compiled(name, 3)[1])
    assert_close(jitted, eager, rtol=1e-10)

    def step(state, data):
        seen, heard = read(name, *data)
        weights, state = weighting.update(seen, state, losses=heard)
        return state, weights

    # A scan is a program of that one's kind, if it can carry the state.
    scan = functools.partial(jax.lax.scan, step)
    last, _ = jax.eval_shape(scan, states[0], (gramians, losses))
    assert_same_signature(last, states[-1])


@each_weighting
@pytest.mark.usefixtures("x64")
def test_permuting_the_terms_permutes_the_weights(name):
    method = _methods.methods()[name]
    if method.drawn:
        pytest.skip("the order of the terms is drawn: see the method's own tests")
    if method.ordered:
        pytest.skip("the order of the terms is part of the problem")
    terms, order = 3, np.array([2, 0, 1])
    if method.permutes is False and not method.anchored:
        pytest.skip("the order of the terms decides between equals")
    gramians, losses = problem(terms, np.float64)
    _, update = compiled(name, terms)
    plain, _ = run(name, gramians, losses, update)
    weighting = method.make(order)
    if method.names_terms:
        update = jax.jit(weighting.update)
    permuted, _ = run(
        name, gramians[:, order][:, :, order], losses[:, order], update, weighting
    )
    expected = plain[:, order]
    if plain.ndim == 3:
        expected = expected[:, :, order]
    # A method that solves by iteration meets its own tolerance, no better.
    permuted, expected = (_methods.relative(method, w) for w in (permuted, expected))
    assert_close(permuted, expected, rtol=1e-9)


@each_weighting
@pytest.mark.usefixtures("own_errors")
def test_missing_losses_are_an_error(name):
    weighting = build(name, 3)
    tx, grads = reweight(weighting, num_terms=3), jnp.ones((3, 2))
    state = tx.init(jnp.zeros(2))
    if not weighting.reads_losses:
        jax.eval_shape(tx.update, grads, state)
        return
    with pytest.raises(ValueError, match="losses") as error:
        tx.update(grads, state)
    assert_message(error.value, "losses", "found none")


@each_weighting
def test_one_gradient_alone_stays_as_it_is(name):
    if _methods.methods()[name].reads:
        gramians, losses = problem(1)
        weights, _ = run(name, gramians, losses, compiled(name, 1)[1])
        assert_close(weights, np.ones_like(weights), rtol=1e-6)


@each_weighting
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("zero", ["gramian", "losses", "both"])
def test_zero_gradients_and_losses_stay_finite(name, terms, zero):
    gramians, losses = problem(terms)
    if zero in ("gramian", "both"):
        gramians = np.zeros_like(gramians)
    if zero in ("losses", "both"):
        losses = np.zeros_like(losses)
    weights, states = run(name, gramians, losses, compiled(name, terms)[1])
    assert_finite(weights)
    assert_finite(states)


@each_weighting
def test_batches_that_hold_more_than_it_reads(name):
    """Under vmap, with NaN wherever it says that it does not look."""
    weighting = build(name, 3)
    gramians, losses = problem(3, steps=4)
    given = gramians.copy(), losses if weighting.reads_losses else losses * np.nan
    if not weighting.reads_gramian:
        diagonal = np.eye(3, dtype=bool) & weighting.reads_norms
        given[0][:, ~diagonal] = np.nan
    states = jax.tree.map(lambda leaf: np.stack([leaf] * 4), weighting.init(3))
    more = functools.partial(weighting.update, value=1.0, something_else="x")
    together = jax.jit(jax.vmap(lambda g, x, s: more(g, s, losses=x)))
    batch, _ = together(*given, states)
    for i in range(4):
        seen, heard = read(name, gramians[i], losses[i])
        alone, _ = compiled(name, 3)[1](seen, weighting.init(3), losses=heard)
        assert_close(batch[i], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        pytest.param(*one.values, "global", marks=one.marks)
        for one in _methods.sampled(_methods.factories())
    ]
    # Groups are the stage's matter: weights, a matrix, and a state that remembers.
    + [(name, "leaf") for name in ("mgda", "pcgrad", "gradnorm")],
)
def test_weights_at_work_are_those_of_the_weighting(name, groups):
    weighting = build(name, 3)
    tx = reweight(weighting, num_terms=3, groups=groups)
    params = {"a": jnp.zeros(4), "b": jnp.zeros((2, 3))}
    rng = np.random.default_rng(0)
    grads = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=(3, 2, 3)).astype(np.float32),
    }
    losses = np.array([0.5, 2.0, 1.0], np.float32)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, later = update(grads, state, params, losses=losses)
        assert_same_signature(later, state)
        state = later
    for leaf in params:
        weights = state.weights if groups == "global" else state.weights[leaf]
        mixing = np.diag(weights) if weights.ndim == 1 else np.asarray(weights)
        expected = np.tensordot(mixing, grads[leaf], 1)
        assert_close(updates[leaf], expected, rtol=1e-5)


@each_weighting
def test_no_array_stands_twice_in_the_state(name):
    """XLA refuses to be given one buffer twice, as a state that is donated would do."""
    gramians, losses = problem(3, steps=2)
    _, states = run(name, gramians, losses, compiled(name, 3)[1])
    for state in states:
        buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(buffers)) == len(buffers)


def test_a_state_can_be_donated():
    weighting = build("compose", 3)
    gramians, losses = problem(3)
    donated = jax.jit(
        lambda state, gramian, loss: weighting.update(gramian, state, losses=loss),
        donate_argnums=0,
    )
    state = weighting.init(3)
    for gramian, loss in zip(gramians, losses, strict=True):
        weights, state = donated(state, gramian, loss)
    assert_finite(weights)
    assert_finite(state)
