"""The sum over the term axis."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import sum_terms, term_grads
from tests._asserts import assert_close, assert_identical, assert_message
from tests._runs import first_step

TX = sum_terms()


def add(grads, params=None):
    return first_step(TX, grads, params)[0]


# One, a few, and beyond 16 terms, where slices are added by halves: even and odd.
@pytest.mark.parametrize("terms", [1, 2, 3, 16, 17, 31, 32, 33, 65])
def test_sum_is_over_axis_0(terms):
    rows = np.arange(terms * 6, dtype=np.float32).reshape(terms, 2, 3)
    grads = {"a": rows, "b": np.ones(terms, np.float32)}
    expected = {"a": rows.sum(axis=0), "b": np.float32(terms)}
    assert_identical(add(grads), expected)


def test_gradient_of_the_summed_loss():
    def losses_fn(w):
        return jnp.stack([jnp.sum(w**2), jnp.sum(jnp.sin(w))])

    w = np.float32([0.3, -1.0])
    grads = jax.jit(term_grads(losses_fn))(w)
    assert_close(add(grads), 2 * w + np.cos(w), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sum_of_half_precision_is_wide(dtype):
    # Above 256 (2048) a bfloat16 (float16) no longer counts by ones.
    terms = 4096
    updates = add(np.ones((terms, 2), dtype))
    assert updates.dtype == dtype
    assert_identical(updates, np.full(2, 4096.0, dtype))


@pytest.mark.parametrize("terms", [5, 16, 33, 4096])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sum_of_half_precision_is_rounded_once(dtype, terms):
    # Random numbers: partial sums of the leaf's own dtype would round, each of them.
    rng = np.random.default_rng(terms)
    grads = rng.normal(size=(terms, 500)).astype(dtype)
    exact = np.asarray(grads, np.float64).sum(axis=0)
    found = np.asarray(add(grads), np.float64)
    # Half a unit in the last place of a number of this size, and float32's own error,
    # of each of the (at most 16 + log2 K) sums that lie behind one another.
    half = jnp.finfo(dtype).eps / 2 * 2.0 ** np.floor(np.log2(np.abs(exact)))
    sums = 2.0**-24 * 28 * np.abs(np.asarray(grads, np.float64)).sum(axis=0)
    assert np.all(np.abs(found - exact) <= half + sums)


def test_stateless():
    assert jax.tree.leaves(TX.init({"w": np.ones(3)})) == []


def test_missing_term_axis_is_named():
    with pytest.raises(ValueError, match="sum_terms") as caught:
        add({"w": np.ones(3)}, {"w": np.ones(3)})
    assert_message(caught.value, "updates['w']", "(num_terms, 3)", "(3,)", "missing")
    with pytest.raises(ValueError, match="term axis is missing"):
        jax.eval_shape(TX.update, np.ones(()), TX.init(None))
    with pytest.raises(ValueError, match="sum_terms") as caught:
        add(np.ones((2, 4)), np.ones(3))
    assert_message(caught.value, "(num_terms, 3)", "(2, 4)")


def test_two_aggregators_in_a_chain_are_refused():
    tx = optax.chain(sum_terms(), sum_terms())
    params = np.ones(4)
    with pytest.raises(ValueError, match="only one aggregator"):
        first_step(tx, np.ones((3, 4)), params)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating point, found int32"):
        add(np.ones((2, 3), np.int32))
