"""weighted: an ordinary optimizer on the weighted sum, with skipped steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import constant, equal, inexact_mgda, mgda, weighted
from tests._asserts import assert_close, assert_identical, assert_zero

PARAMS = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}


def draw(num_terms, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(num_terms, *leaf.shape)), jnp.float32)
        for name, leaf in PARAMS.items()
    }


def test_equals_the_inner_optimizer_on_the_weighted_sum():
    weights = jnp.array([0.2, 3.0, 0.7])
    tx, plain = weighted(constant(weights), optax.adam(0.1), 3), optax.adam(0.1)
    state, expected_state = tx.init(PARAMS), plain.init(PARAMS)
    for seed in range(5):
        grads = draw(3, seed)
        updates, state = tx.update(grads, state, PARAMS)
        total = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), grads)
        expected, expected_state = plain.update(total, expected_state, PARAMS)
        assert_close(updates, expected, rtol=1e-5)
    assert_close(state.inner, expected_state, rtol=1e-5)


def test_one_term_is_the_inner_optimizer():
    tx, plain = weighted(mgda(), optax.adam(0.1), 1), optax.adam(0.1)
    grads = draw(1)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    alone = jax.tree.map(lambda leaf: leaf[0], grads)
    expected, _ = plain.update(alone, plain.init(PARAMS), PARAMS)
    assert_identical(updates, expected)


def test_a_skipped_step_touches_nothing():
    tx = weighted(inexact_mgda(0.5), optax.adam(0.1), 2)
    step = jax.jit(tx.update)
    grads = draw(2)
    # Nearly opposed: what is left of d is far shorter than the bound on the error.
    opposed = jax.tree.map(lambda leaf: leaf.at[1].set(0.1 * leaf[1] - leaf[0]), grads)
    _, state = step(grads, tx.init(PARAMS), PARAMS)
    assert bool(optax.tree.get(state, "ready"))
    assert int(optax.tree.get(state, "count")) == 1
    updates, after = step(opposed, state, PARAMS)
    assert not bool(optax.tree.get(after, "ready"))
    assert_zero(updates)
    assert_identical(after.inner, state.inner)
    assert int(optax.tree.get(after, "skipped")) == 1
    _, resumed = step(grads, after, PARAMS)
    assert int(optax.tree.get(resumed, "count")) == 2
    assert int(optax.tree.get(resumed, "skipped")) == 1


def test_extra_arguments_go_to_weighting_and_inner():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = weighted(equal(), inner, 2)
    grads = draw(2)
    tx.update(grads, tx.init(PARAMS), PARAMS, value=1.0, losses=jnp.ones(2))
    assert seen.pop("value") == 1.0
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), grads)
    assert_close(seen.pop("grad"), mean, rtol=1e-6)
    assert not seen


def test_schedules_inside_the_inner_optimizer_count_steps_taken():
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.0})
    tx = weighted(inexact_mgda(1e9), optax.sgd(schedule), 2)
    _, state = tx.update(draw(2), tx.init(PARAMS), PARAMS)
    assert int(optax.tree.get(state, "count")) == 0  # the only step was skipped


@pytest.mark.usefixtures("own_errors")
def test_inner_must_be_a_transformation():
    with pytest.raises(TypeError, match=r"weighted: inner must be an optax"):
        weighted(mgda(), 0.1, 2)


def test_an_optimizer_that_reads_the_value_gets_that_of_the_weighted_sum():
    """Polyak's step on the mean of two |w - 3| goes to 3 at once."""
    tx = weighted(constant([0.5, 0.5]), optax.polyak_sgd(max_learning_rate=10.0), 2)
    w = jnp.array(2.5)
    losses, grads = jnp.abs(jnp.stack([w, w]) - 3), jnp.array([-1.0, -1.0])
    updates, _ = tx.update(grads, tx.init(w), w, losses=losses)
    assert_close(w + updates, jnp.array(3.0), rtol=1e-6)
    # One's own value counts: here that of the plain sum.
    updates, _ = tx.update(grads, tx.init(w), w, losses=losses, value=jnp.sum(losses))
    assert_close(w + updates, jnp.array(3.5), rtol=1e-6)


def test_a_line_search_finds_the_gradient_of_the_weighted_sum(x64):
    def losses_of(p):
        return jnp.stack([jnp.sum((p - 1) ** 2), 3 * jnp.sum((p + 2) ** 2)])

    def value_fn(p):
        return jnp.dot(jnp.array([1.0, 0.5]), losses_of(p))

    search = optax.scale_by_backtracking_linesearch(20)
    tx = weighted(constant([1.0, 0.5]), optax.chain(optax.sgd(0.1), search), 2)
    p = jnp.array([4.0, -3.0])

    @jax.jit
    def step(p, state):
        losses, grads = losses_of(p), jax.jacobian(losses_of)(p)
        updates, state = tx.update(grads, state, p, losses=losses, value_fn=value_fn)
        return p + updates, state

    state = tx.init(p)
    for _ in range(30):
        p, state = step(p, state)
    assert_close(p, jnp.full(2, -0.8), atol=1e-6, rtol=0)
