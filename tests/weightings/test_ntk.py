"""The kernel's traces, and the weights from them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_finite, assert_message
from tests._methods import Method
from tests.references import grad_norm_balance as reference
from tests.weightings._runs import deviation, random_losses

K, STEPS = 3, 30


def one_row_each(decay=0.9):
    """``ntk`` of terms that are one residual: its traces are the squared norms."""
    weighting = mt.ntk(decay)

    def update(gramian, state, *, losses=None, present=None, **extra_args):
        del losses, extra_args
        traces = gramian if gramian.ndim == 1 else jnp.diagonal(gramian)
        return weighting.update(None, state, present=present, traces=traces)

    return mt.Weighting(weighting.init, update, reads_gramian=False, reads_norms=True)


# The traces are an argument of their own: the shared tests give the squared norms. The
# direction may then be far longer than the longest gradient, to whose digits the shared
# test of scales holds it; there is one of its own below.
METHODS = {"ntk": Method(one_row_each, permutes=True, invariant=False)}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_transcription(decay, rng, record_deviation):
    traces = random_losses(rng, STEPS, K) * 10.0 ** np.arange(K)
    weighting = mt.ntk(decay)

    def step(state, now):
        weights, state = weighting.update(None, state, traces=now)
        return state, weights

    _, found = jax.lax.scan(step, weighting.init(K), jnp.asarray(traces))
    expected = reference.averaged(traces, decay=decay)
    largest = deviation(np.asarray(found), expected)
    record_deviation("ntk", largest)
    assert largest <= 1e-13


def test_one_row_a_term_is_the_inverse_squared_norm():
    weighting, rows = mt.ntk(decay=0.0), np.float32([[3.0, 4.0], [0.6, 0.8]])
    traces = jax.jit(mt.ntk_traces(lambda w: list(rows @ w)))(np.zeros(2, np.float32))
    np.testing.assert_allclose(traces, [25.0, 1.0], rtol=1e-6)
    weights, _ = weighting.update(None, weighting.init(2), traces=traces)
    np.testing.assert_allclose(weights, [13 / 25, 13.0], rtol=1e-6)
    weights, _ = one_row_each(0.0).update(rows @ rows.T, weighting.init(2))
    np.testing.assert_allclose(weights, [13 / 25, 13.0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_the_scale_of_all_traces_does_not_matter(scale):
    weighting, traces = mt.ntk(), np.array([1e-6, 1.0, 3e5])
    plain, _ = weighting.update(None, weighting.init(K), traces=np.float32(traces))
    scaled = np.float32(scale * traces)
    found, _ = weighting.update(None, weighting.init(K), traces=scaled)
    np.testing.assert_allclose(found, plain, rtol=1e-6)


def test_without_traces_the_weights_stay():
    weighting = mt.ntk()
    first, state = weighting.update(None, weighting.init(2), traces=[1.0, 3.0])
    second, after = weighting.update(None, state)
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(after.averages, state.averages)


def test_traces_reach_it_wherever_it_stands():
    grads, w = np.ones((2, 3), np.float32), np.zeros(3, np.float32)
    traces = {"a": np.float32(1.0), "b": np.float32(3.0)}
    expected = [1.1, 0.9 + 0.1 * 2 / 3]
    for tx in (
        mt.reweight(mt.ntk(), 2),
        mt.reweight(mt.compose(mt.ntk(), mt.equal()), 2),
        mt.weighted(mt.ntk(), optax.sgd(1.0), 2),
    ):
        _, state = jax.jit(tx.update)(grads, tx.init(w), traces=traces)
        weights = np.asarray(optax.tree.get(state, "weights"))
        np.testing.assert_allclose(weights / weights[0], np.array(expected) / 1.1)

    weighted_grad = mt.value_and_weighted_grad(lambda w: [w[0], 2 * w[1]], mt.ntk())
    update, start = jax.jit(weighted_grad.update), weighted_grad.init(2)
    _, found, _ = update(start, w[:2], traces=traces)
    np.testing.assert_allclose(found, [expected[0], 2 * expected[1]], rtol=1e-6)


@pytest.mark.parametrize("traces", [[0.0, 2.0], [np.nan, 2.0], [np.inf, 2.0]])
def test_awkward_traces_stay_finite(traces):
    weighting = mt.ntk()
    update = jax.jit(lambda now: weighting.update(None, weighting.init(2), traces=now))
    weights, _ = update(jnp.array(traces))
    assert_finite(weights)
    assert weights[0] == 1
    assert (weights[1] == 1) == (traces[0] != 0)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("traces", "found"),
    [
        (jnp.ones(3), "shape (3,)"),
        ([1.0], "[1.0]"),
        ({"a": 1.0, "b": jnp.ones(2)}, "(2,)"),
    ],
)
def test_wrong_traces_are_errors(traces, found):
    weighting = mt.ntk()
    with pytest.raises(ValueError, match="ntk: traces must be") as error:
        weighting.update(None, weighting.init(2), traces=traces)
    assert_message(error.value, "num_terms=2", found)
    with pytest.raises(TypeError, match="ntk: traces must be real numbers"):
        weighting.update(None, weighting.init(2), traces=["a", "b"])
    with pytest.raises(ValueError, match="ntk: decay must be"):
        mt.ntk(decay=2.0)
