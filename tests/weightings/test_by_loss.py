"""Loss balancing, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical
from tests._methods import Method
from tests._problems import sizes
from tests.weightings import _runs

METHODS = {
    "by_loss": Method(mt.by_loss),
    "by_loss, fast": Method(mt.by_loss, {"decay": 0.5}),
}


def formula(losses, decay):
    """Weights of every step: one over the averages, geometric mean 1."""
    weights, total = [], np.zeros(losses.shape[1])
    for t, loss in enumerate(losses, start=1):
        total = decay * total + (1 - decay) * np.abs(loss)
        means = total / (1 - decay**t)
        weights.append(np.exp(np.mean(np.log(means))) / means)
    return np.stack(weights)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_agrees_with_the_formula(x64, record_deviation, rng, decay, terms):
    losses = _runs.random_losses(rng, 40, terms)
    losses[:, 1] *= -1.0  # a policy's loss may be negative
    found, _ = _runs.run(mt.by_loss(decay), losses)
    deviation = _runs.deviation(found, formula(losses, decay))
    record_deviation("by_loss", deviation)
    assert deviation < 1e-12


def test_a_traced_decay_is_the_same(x64, rng):
    losses = _runs.random_losses(rng, 5, 3)
    found = jax.jit(lambda beta: _traced(beta, losses))(0.99)
    assert_close(found, formula(losses, 0.99)[-1], rtol=1e-12)


def _traced(beta, losses):
    weighting = mt.by_loss(beta)
    state = weighting.init(losses.shape[1])
    for loss in losses:
        weights, state = weighting.update(None, state, losses=jnp.asarray(loss))
    return weights


def test_one_term_alone_has_the_weight_one(rng):
    found, _ = _runs.run(mt.by_loss(), np.float32(_runs.random_losses(rng, 6, 1)))
    assert_identical(found, np.ones_like(found))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_no_loss_s_scale_moves_an_adam_behind_it(scale):
    """Away from powers of two, too, where the rounding of the loss is another one."""

    @jax.jit
    def trajectory(factor):
        def losses_fn(p):
            fit, other = jnp.sum((p - 1) ** 2), jnp.sum(jnp.cosh(p + jnp.arange(3.0)))
            return jnp.stack([fit * factor, other])

        # Adam's eps is no part of the scale; it is absolute.
        tx = mt.weighted(mt.by_loss(), optax.adam(0.05, eps=1e-30), 2)

        def step(carry, _):
            p, state = carry
            losses, grads = mt.value_and_term_grads(losses_fn)(p)
            updates, state = tx.update(grads, state, p, losses=losses)
            return (optax.apply_updates(p, updates), state), p

        p = jnp.array([0.5, -0.3, 2.0])
        return jax.lax.scan(step, (p, tx.init(p)), None, length=50)[1]

    found, plain = (np.asarray(trajectory(np.float32(s))) for s in (scale, 1.0))
    assert_close(found, plain, rtol=0, atol=3e-5)


def test_a_loss_that_is_zero_leaves_its_term_as_it_is():
    weighting = mt.by_loss(0.5)  # all is exact
    losses = np.float32([0.0, 4.0, 1.0])
    weights, state = jax.jit(weighting.update)(None, weighting.init(3), losses=losses)
    assert_close(weights, np.array([1.0, 0.5, 2.0]), rtol=1e-6)
    assert_identical(state.means, losses)


def test_a_loss_that_is_not_finite_leaves_its_average_as_it_was():
    weighting = mt.by_loss(0.5)
    update, state = jax.jit(weighting.update), weighting.init(2)
    _, state = update(None, state, losses=np.float32([2.0, 1.0]))
    weights, after = update(None, state, losses=np.float32([np.nan, 1.0]))
    assert_identical(after.means, state.means)
    assert_identical(after.seen, np.array([1, 2]))
    assert_close(weights, np.array([0.5, 2.0]) ** 0.5, rtol=1e-6)
