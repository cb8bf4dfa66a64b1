"""Unusual input that passes, and what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests import _factories
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_same_structure,
    assert_zero,
)
from tests.bad_input._step import (
    PARAMS,
    K,
    X,
    each_factory,
    grads,
    mtadam,
    row_losses,
    step,
    two,
)

# The library's own messages, as a user without a type checker sees them.
pytestmark = pytest.mark.usefixtures("own_errors")


# Of one shape, since these steps are not jitted and compile each operation for each.
SCALARS = {"w": jnp.ones(()), "s": jnp.ones(())}
SCALAR_GRADS = grads(K, SCALARS)


def update(tx, updates=SCALAR_GRADS, params=SCALARS, **extra):
    found, _ = tx.update(updates, tx.init(params), params, **extra)
    return found


HOLES = {"w": jnp.ones(2), "none": None, "empty": jnp.ones((0, 3)), "rest": ()}


@each_factory
def test_leaves_that_are_none_or_empty(factory):
    tx = factory.build()
    updates = grads(_factories.TERMS, HOLES)
    losses = _factories.example_losses()
    found, _ = step(tx, updates, HOLES, state=tx.init(HOLES), losses=losses)
    assert_same_structure(found, HOLES)
    lead = (_factories.TERMS,) if factory.keeps_terms else ()
    assert found["empty"].shape == (*lead, 0, 3)


@pytest.mark.parametrize(
    "build", [mtadam, lambda: mt.weighted(mt.mgda(), optax.sgd(0.1), K)]
)
def test_empty_leaves_change_nothing_for_the_others(build):
    tx, updates = build(), grads(K, HOLES)

    @jax.jit
    def both(updates):
        params = {"w": HOLES["w"]}
        alone, _ = tx.update({"w": updates["w"]}, tx.init(params), params)
        return tx.update(updates, tx.init(HOLES), HOLES), alone

    (found, state), alone = both(updates)
    assert_finite(state)
    assert_close(found["w"], alone["w"], rtol=1e-6)


@each_factory
def test_no_parameters_at_all(factory):
    tx, losses = factory.build(), _factories.example_losses()
    found, _ = jax.eval_shape(
        lambda state: tx.update({}, state, {}, losses=losses), tx.init({})
    )
    assert found == {}


@each_factory
def test_leaves_of_several_dtypes_keep_their_own(factory):
    params = {"h": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(2, jnp.float32)}
    found, _ = step(
        factory.build(),
        grads(_factories.TERMS, params),
        params,
        state=factory.build().init(params),
        losses=_factories.example_losses(),
    )
    assert jax.tree.map(lambda u: u.dtype, found) == {"h": "bfloat16", "f": "float32"}


@pytest.mark.parametrize(
    "build", [mtadam, lambda: mt.weighted(mt.dwa(), optax.sgd(0.1), K)]
)
def test_numpy_arrays_and_python_numbers(build):
    tx, other = build(), {"w": np.ones((), np.float32), "s": 1.0}
    as_numpy = jax.tree.map(np.asarray, SCALAR_GRADS)
    found, _ = tx.update(as_numpy, tx.init(other), other, losses=[0.5, 2.0])
    expected = update(tx, losses=jnp.array([0.5, 2.0]))
    assert_close(found, expected, rtol=1e-6)


def test_losses_may_be_integers_or_in_any_tree():
    tx = mt.reweight(mt.constant([1.0, 3.0]), K)
    dwa = mt.reweight(mt.dwa(), K)
    expected = update(dwa, losses=jnp.array([2.0, 1.0]))
    for losses in (
        jnp.array([2, 1]),
        [2.0, 1.0],
        {"a": 2.0, "b": jnp.ones(())},
        (jnp.array([2.0, 1.0]), None),
    ):
        assert_identical(update(dwa, losses=losses), expected)
        assert_identical(update(tx, losses=losses), update(tx))


def test_a_negative_learning_rate_goes_uphill():
    assert_identical(
        update(mtadam(learning_rate=-0.1)),
        jax.tree.map(lambda u: -u, update(mtadam(learning_rate=0.1))),
    )


def test_one_loss_that_is_a_scalar_is_one_term():
    losses, found = mt.value_and_term_grads(jnp.sum)(X)
    assert losses.shape == ()
    assert_identical(found, jnp.ones((1, 2)))


def test_a_loss_that_does_not_depend_on_the_parameters():
    losses, found = mt.value_and_term_grads(lambda x: [jnp.sum(x), 1.0])(X)
    assert losses[1] == 1.0
    assert_identical(found, jnp.array([[1.0, 1.0], [0.0, 0.0]]))


def test_aux_of_a_pair_of_scalars_is_the_second():
    (losses, aux), found = mt.value_and_term_grads(
        lambda x: (jnp.sum(x), jnp.sum(x**2)), has_aux=True
    )(X)
    assert (float(losses), float(aux)) == (2.0, 2.0)
    assert found.shape == (1, 2)


def test_argnums_may_be_a_numpy_integer():
    _, found = mt.value_and_term_grads(two, argnums=np.int64(0))(X)
    assert found.shape == (K, 2)


def test_rows_of_a_term_that_is_not_there():
    fn = jax.jit(mt.value_and_row_grads(row_losses, K))
    losses, found = fn(X, jnp.ones(4), np.array([0, 1, 0, K]))
    assert np.all(np.isnan(losses))
    assert np.all(np.isnan(found))
    losses, found = fn(X, jnp.ones(4), np.array([0, 0, 0, -1]))
    np.testing.assert_array_equal(losses, [1.0, 0.0])
    assert_zero(found[1])


def test_row_weights_may_be_a_mask_or_traced():
    fn = mt.value_and_row_grads(row_losses, K)
    rows, owners = jnp.arange(4.0), jnp.array([0, 1, 0, 1])
    mask = np.array([True, False, True, True])
    given = [1.0, 0.0, 1.0, 1.0], mask

    def ways(traced):
        return [fn(X, rows, owners, row_weights=w) for w in (*given, traced)]

    numbers, masked, traced = jax.jit(ways)(mask)
    assert_identical(masked, numbers)
    assert_close(traced, numbers, rtol=1e-6)
    assert jax.eval_shape(ways, np.full(4, -1.0))


def test_hyperparameters_may_be_arrays_without_axes():
    plain = update(mtadam(b1=0.5))
    for value in (np.float32(0.5), jnp.array(0.5), np.array(0.5)):
        assert_close(update(mtadam(b1=value)), plain, rtol=1e-6)


# --- what no check can see ------------------------------------------------------------


def test_optax_chain_does_not_miss_an_aggregator():
    """Which is what ``multiterm_optax.chain`` is for."""
    tx = optax.chain(mt.balance_by_norm(K), optax.adam(0.1))
    updates, _ = step(tx)
    assert updates["w"].shape == (K, 4, 3)
    params = jax.eval_shape(optax.apply_updates, PARAMS, updates)
    assert params["w"].shape == (K, 4, 3)
    with pytest.raises(ValueError, match="sum_terms"):
        step(mt.chain(mt.balance_by_norm(K), optax.adam(0.1)))


def test_an_ordinary_optimizer_does_not_miss_the_sum():
    assert step(optax.adam(0.1))[0]["w"].shape == (K, 4, 3)


def test_decay_inside_needs_params():
    for tx in (mtadam(weight_decay=0.1), mt.adatask(optax.adamw(0.1), K)):
        with pytest.raises(ValueError, match="not passing `params`"):
            step(tx, params=None)
