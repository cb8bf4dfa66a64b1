"""What every exported weighting keeps to, whatever the method."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import reweight
from tests import _magnitudes, _methods
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_same_signature,
    assert_strong_types,
)
from tests.weightings import _steps

STEPS = 6

each_weighting = pytest.mark.parametrize("name", _methods.factories())
build = _methods.build


def problem(terms, dtype=np.float64, steps=STEPS):
    """Gramians [steps, K, K] and positive losses [steps, K]."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(steps, terms, terms + 5)) + rng.normal(size=terms + 5)
    rows *= np.exp(rng.normal(size=terms))[:, None]
    losses = np.exp(rng.normal(size=(steps, terms)))
    gramians = np.einsum("tip,tjp->tij", rows, rows)
    return gramians.astype(dtype), losses.astype(dtype)


def run(name, gramians, losses, at=None):
    """Weights of every step and every state, the first one included."""
    at = losses.shape[1] if at is None else at
    _, update = _steps.update_of(name, at)
    states = [_steps.start_of(name, at)]
    history = []
    for gramian, loss in zip(gramians, losses, strict=True):
        seen, heard = _steps.read(name, gramian, loss)
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
        (1, "float64"),
        (3, "float64"),
        pytest.param(64, "float32", marks=pytest.mark.slow),
    ],
)
def test_shapes_and_a_stable_state(name, terms, dtype):
    with jax.enable_x64(dtype == "float64"):
        gramians, losses = problem(terms, dtype)
        counted, _ = _steps.update_of(name, terms)
        traced = counted.count  # by tests of this process before it
        weights, states = run(name, gramians, losses)
        assert weights.shape[1:] in ((terms,), (terms, terms))
        assert weights.dtype == dtype
        assert_finite(weights)
        for state in states[1:]:
            assert_same_signature(state, states[0])
            assert_finite(state)
        assert counted.count - traced <= 1


@each_weighting
@pytest.mark.parametrize(("terms", "dtype"), [(1, "float32"), (3, "float32")])
def test_types_of_a_scan(name, terms, dtype):
    """Tracing finds them: a scan refuses a state that changes its shapes or dtypes."""
    weighting = build(name, terms)
    start = jax.eval_shape(lambda: weighting.init(terms))
    assert_strong_types(start)

    def step(state, data):
        seen, heard = _steps.read(name, *data)
        weights, state = weighting.update(seen, state, losses=heard)
        return state, weights

    scan = functools.partial(jax.lax.scan, step)
    last, weights = jax.eval_shape(scan, start, problem(terms, dtype))
    assert weights.shape in ((STEPS, terms), (STEPS, terms, terms))
    assert weights.dtype == dtype
    assert_same_signature(last, start)


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
    gramians, losses = problem(terms)
    plain, _ = run(name, gramians, losses)
    permuted, _ = run(
        name, gramians[:, order][:, :, order], losses[:, order], tuple(order)
    )
    expected = plain[:, order]
    if plain.ndim == 3:
        expected = expected[:, :, order]
    # A method that solves by iteration meets its own tolerance, no better.
    permuted, expected = (_methods.relative(method, w) for w in (permuted, expected))
    assert_close(permuted, expected, rtol=1e-9)


@each_weighting
@pytest.mark.usefixtures("x64")
def test_one_gradient_alone_stays_as_it_is(name):
    if _methods.methods()[name].reads:
        weights, _ = run(name, *problem(1))
        assert_close(weights, np.ones_like(weights), rtol=1e-6)


@each_weighting
def test_zero_gradients_and_losses_stay_finite(name):
    gramians, losses = problem(_steps.TERMS)
    cases = {
        "gramian": (0 * gramians, losses),
        "losses": (gramians, 0 * losses),
        "both": (0 * gramians, 0 * losses),
    }
    together = [np.stack(part) for part in zip(*cases.values(), strict=True)]
    weights, states = _steps.run_batch(name, *together)
    for i, case in enumerate(cases):
        assert np.all(np.isfinite(weights[i])), f"{case} of zero: {weights[i]}"
    assert_finite(states)


@each_weighting
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("zero", ["gramian", "losses", "both"])
def test_one_term_of_zero_stays_finite(name, zero):
    gramians, losses = problem(1)
    gramians = gramians * (zero == "losses")
    losses = losses * (zero == "gramian")
    weights, states = run(name, gramians, losses)
    assert_finite(weights)
    assert_finite(states)


@each_weighting
def test_batches_that_hold_more_than_it_reads(name):
    """Under vmap, with NaN wherever it says that it does not look.

    In float32, and what comes out is what each problem alone gives in float64.
    """
    weighting = build(name, 3)
    gramians, losses = problem(3)
    given = gramians.copy(), losses if weighting.reads_losses else losses * np.nan
    if not weighting.reads_gramian:
        diagonal = np.eye(3, dtype=bool) & weighting.reads_norms
        given[0][:, ~diagonal] = np.nan
    # Each step is the first one of a run.
    batch, _ = _steps.run_batch(name, *(values[:, None] for values in given))
    with jax.enable_x64(True):
        for i in range(STEPS):
            seen, heard = _steps.read(name, gramians[i], losses[i])
            update = _steps.update_of(name)[1]
            alone, _ = update(seen, _steps.start_of(name), losses=heard)
            assert_close(batch[i, 0], alone, rtol=1e-5)


@functools.cache
def of_all_sizes():
    """Gradients [cases, steps, K, P], and losses [cases, steps, K]."""
    rows, losses = [], []
    for case in _magnitudes.CASES:
        grads, of_case = _magnitudes.sized(case)
        flat = [leaf.reshape(*of_case.shape, -1) for leaf in grads.values()]
        rows.append(np.concatenate(flat, axis=2))
        losses.append(of_case)
    return np.stack(rows), np.stack(losses)


@each_weighting
def test_weights_over_thirty_six_orders_of_magnitude(name):
    """The directions in float32 are those in float64."""
    rows, losses = of_all_sizes()
    wide = np.float64(rows)
    narrow, states = _steps.run_batch(name, rows @ rows.swapaxes(2, 3), losses)
    assert narrow.dtype == np.float32
    assert_finite((narrow, states))
    with jax.enable_x64(True):
        exact = wide @ wide.swapaxes(2, 3), np.float64(losses)
        expected = [run(name, *of_case)[0] for of_case in zip(*exact, strict=True)]
    total, exact_total = (
        weights if weights.ndim == 3 else weights.sum(axis=2)
        for weights in (np.float64(narrow), np.stack(expected))
    )
    method = _methods.methods()[name]
    for i, case in enumerate(_magnitudes.CASES):
        found, right = (
            np.einsum("tk,tkp->tp", weights[i], wide[i])
            for weights in (total, exact_total)
        )
        gap = _magnitudes.deviation(found, right, False, right)
        allowed = method.digits if method.reads == "gramian" else 1e-6
        if method.reads == "gramian" and case in _magnitudes.CANCELLING:
            allowed = 1e-2
        assert gap <= allowed, case


# One that reads norms, losses and the gramian each. Those that are compared with their
# papers at work do not need it again.
AT_WORK = {"by_norm", "mgda", "softadapt"}


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        pytest.param(n, "global", marks=[] if n in AT_WORK else pytest.mark.slow)
        for n in _methods.factories()
    ]
    # Groups are the stage's matter: a matrix, and weights with a state that remembers.
    + [(name, "leaf") for name in ("pcgrad", "gradnorm")],
)
def test_weights_at_work_are_those_of_the_weighting(name, groups):
    tx = reweight(build(name, 3), num_terms=3, groups=groups)
    rng = np.random.default_rng(0)
    shapes = {"a": (4,), "b": (2, 3)}
    params = {leaf: np.zeros(shape, np.float32) for leaf, shape in shapes.items()}
    grads = {n: np.float32(rng.normal(size=(3, *s))) for n, s in shapes.items()}
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
@pytest.mark.usefixtures("x64")
def test_no_array_stands_twice_in_the_state(name):
    """XLA refuses to be given one buffer twice, as a state that is donated would do."""
    start = jax.make_jaxpr(lambda: build(name, 3).init(3))().jaxpr.outvars
    arrays = [one for one in start if isinstance(one, jax.extend.core.Var)]
    assert len(set(arrays)) == len(arrays)
    _, states = run(name, *problem(3, steps=2))
    for state in states[1:]:
        buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(buffers)) == len(buffers)


def test_a_state_can_be_donated():
    # Which program it is given to does not matter.
    give = jax.jit(
        lambda state: jax.tree.map(lambda x: x + jnp.zeros((), x.dtype), state),
        donate_argnums=0,
    )
    state = build("compose", 3).init(3)
    assert_finite(give(state))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
