"""weighted: an ordinary optimizer on the weighted sum, with skipped steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import constant, equal, inexact_mgda, mgda, weighted
from tests._asserts import assert_close, assert_identical, assert_zero
from tests._runs import all_steps, first_step

PARAMS = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(4, np.float32)}


def draw(num_terms, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(num_terms, *leaf.shape)).astype(np.float32)
        for name, leaf in PARAMS.items()
    }


def test_equals_the_inner_optimizer_on_the_weighted_sum():
    weights = np.float32([0.2, 3.0, 0.7])
    grads = jax.tree.map(lambda *g: np.stack(g), *(draw(3, seed) for seed in range(5)))
    tx = weighted(constant(weights), optax.adam(0.1), 3)
    updates, states = all_steps(tx, grads, PARAMS)
    total = jax.tree.map(lambda leaf: np.einsum("k,sk...->s...", weights, leaf), grads)
    expected, expected_states = all_steps(optax.adam(0.1), total, PARAMS)
    assert_close(updates, expected, rtol=1e-5)
    assert_close(states.inner, expected_states, rtol=1e-5)


def test_one_term_is_the_inner_optimizer():
    grads = draw(1)
    updates, _ = first_step(weighted(mgda(), optax.adam(0.1), 1), grads, PARAMS)
    alone = jax.tree.map(lambda leaf: leaf[0], grads)
    assert_identical(updates, first_step(optax.adam(0.1), alone, PARAMS)[0])


def test_a_skipped_step_touches_nothing():
    tx = weighted(inexact_mgda(0.5), optax.adam(0.1), 2)
    grads = draw(2)
    # Nearly opposed: what is left of d is far shorter than the bound on the error.
    opposed = jax.tree.map(
        lambda leaf: np.stack([leaf[0], np.float32(0.1) * leaf[1] - leaf[0]]), grads
    )
    each = jax.tree.map(lambda *g: np.stack(g), grads, opposed, grads)
    updates, states = all_steps(tx, each, PARAMS)
    assert optax.tree.get(states, "ready").tolist() == [True, False, True]
    assert optax.tree.get(states, "count").tolist() == [1, 1, 2]
    assert optax.tree.get(states, "skipped").tolist() == [0, 1, 1]
    assert_zero(jax.tree.map(lambda u: u[1], updates))
    before, after = (jax.tree.map(lambda x, t=t: x[t], states.inner) for t in (0, 1))
    assert_identical(after, before)


def test_extra_arguments_go_to_weighting_and_inner():
    seen = {}

    def update(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = weighted(equal(), inner, 2)
    grads = draw(2)

    @jax.jit
    def run(grads):
        state, losses = tx.init(PARAMS), jnp.ones(2)
        tx.update(grads, state, PARAMS, value=1.0, losses=losses)
        return seen.pop("grad")

    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), grads)
    assert_close(run(grads), mean, rtol=1e-6)
    assert seen.pop("value") == 1.0
    assert not seen


def test_schedules_inside_the_inner_optimizer_count_steps_taken():
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.0})
    tx = weighted(inexact_mgda(1e9), optax.sgd(schedule), 2)
    _, state = first_step(tx, draw(2), PARAMS)
    assert int(optax.tree.get(state, "count")) == 0  # the only step was skipped


@pytest.mark.usefixtures("own_errors")
def test_inner_must_be_a_transformation():
    with pytest.raises(TypeError, match=r"weighted: inner must be an optax"):
        weighted(mgda(), 0.1, 2)


def test_an_optimizer_that_reads_the_value_gets_that_of_the_weighted_sum():
    """Polyak's step on the mean of two |w - 3| goes to 3 at once."""
    tx = weighted(constant([0.5, 0.5]), optax.polyak_sgd(max_learning_rate=10.0), 2)
    w, losses, grads = np.float32(2.5), np.float32([0.5, 0.5]), np.float32([-1, -1])
    updates, _ = first_step(tx, grads, w, losses=losses)
    assert_close(w + updates, np.array(3.0), rtol=1e-6)
    # One's own value counts: here that of the plain sum.
    updates, _ = first_step(tx, grads, w, losses=losses, value=np.float32(1.0))
    assert_close(w + updates, np.array(3.5), rtol=1e-6)


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
