"""Random weights: their distribution, and who draws what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import random_weights
from tests._asserts import (
    assert_close,
    assert_different,
    assert_identical,
    assert_message,
)
from tests._methods import Method

METHODS = {
    "random_weights": Method(
        random_weights, {"key": lambda terms: jax.random.key(0)}, simplex=True
    )
}

STEPS = 4000


def run(weighting, terms, masks=None):
    """Weights of many steps [steps, K]."""

    def step(state, mask):
        weights, state = weighting.update(None, state, present=mask)
        return state, weights

    scan = jax.jit(lambda s: jax.lax.scan(step, s, masks, length=STEPS)[1])
    return np.asarray(scan(weighting.init(terms)))


def test_weights_are_the_softmax_of_normal_numbers():
    found = np.float64(run(random_weights(jax.random.key(0)), 3))
    assert_close(found.sum(axis=1), np.ones(STEPS), rtol=1e-6)
    assert_close(found.mean(axis=0), np.full(3, 1 / 3), rtol=0.03)
    # Differences of two logarithms are those of two normal numbers.
    logs = np.log(found)
    apart = np.stack([logs[:, 0] - logs[:, 1], logs[:, 1] - logs[:, 2]])
    assert np.max(np.abs(apart.mean(axis=1))) < 0.1
    np.testing.assert_allclose(np.cov(apart), [[2, -1], [-1, 2]], atol=0.2)
    # From step to step they have nothing to do with one another.
    assert abs(np.corrcoef(apart[0, 1:], apart[0, :-1])[0, 1]) < 0.06


def test_the_reference_in_numpy(x64, record_deviation):
    """The recipe of the page: a key for each term, and its normal numbers."""
    weighting, expected = random_weights(jax.random.key(5)), []
    keys = jax.random.split(jax.random.key(5), 4)
    state, found = weighting.init(4), []

    @jax.jit
    def both(keys, state):
        pairs = [jax.random.split(key) for key in keys]
        normals = [jax.random.normal(pair[1], dtype=jnp.float32) for pair in pairs]
        keys = jnp.stack([pair[0] for pair in pairs])
        return keys, jnp.stack(normals), *weighting.update(None, state)

    for _ in range(3):
        keys, normals, weights, state = both(keys, state)
        normals = np.float64(normals)
        expected.append(np.exp(normals) / np.sum(np.exp(normals)))
        found.append(weights)
    gap = np.max(np.abs(np.stack(found) - expected))
    record_deviation("random_weights", gap)
    assert gap < 1e-15


def test_absent_terms_change_nothing_of_what_the_others_draw(x64):
    weighting = random_weights(jax.random.key(1))
    state, update = weighting.init(3), jax.jit(weighting.update)
    whole, later = update(None, state, present=np.ones(3, bool))
    part, after = update(None, state, present=np.array([True, False, True]))
    state, later, after = jax.tree.map(np.asarray, (state, later, after))
    rest = np.array(whole)
    rest[1] = 0
    assert_close(part, rest / rest.sum(), rtol=1e-12)
    assert_identical(after.keys[:, 1], state.keys[:, 1])
    assert_identical(after.keys[:, ::2], later.keys[:, ::2])


def test_keys_of_any_kind():
    typed = random_weights(jax.random.key(3))
    raw = random_weights(jax.random.PRNGKey(3))
    update = jax.jit(typed.update)
    first, state = update(None, typed.init(5))
    same, _ = update(None, raw.init(5))  # the same state, whichever made it
    assert_identical(first, same)
    again, _ = update(None, state)
    assert_different(again, first)
    other = random_weights(jax.random.key(0, impl="rbg"))
    _, state = jax.eval_shape(other.update, None, other.init(3))
    assert state.keys.shape == (4, 3)


@pytest.mark.parametrize("key", [0, None, jnp.zeros((2, 2), jnp.uint32)])
def test_bad_key_is_named(own_errors, key):
    with pytest.raises(TypeError, match="key must be") as caught:
        random_weights(key)
    assert_message(caught.value, "random_weights", "jax.random.key(0)", "found")
