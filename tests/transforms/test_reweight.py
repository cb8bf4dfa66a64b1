"""reweight: a weighting at work on a pytree of per-term gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import Weighting, constant, equal, inexact_mgda, mgda, reweight
from tests._asserts import assert_close, assert_finite, assert_message
from tests._runs import first_step

SHAPES = {"w": (3, 4), "b": (4,), "s": ()}
PARAMS = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def draw(num_terms, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(num_terms, *shape)).astype(dtype)
        for name, shape in SHAPES.items()
    }


def flat(grads, names=("b", "s", "w")):
    """The Jacobian [K, P] of the named leaves, float64."""
    return np.concatenate(
        [
            np.asarray(grads[name], np.float64).reshape(len(grads[name]), -1)
            for name in names
        ],
        axis=1,
    )


def spy():
    """A weighting that keeps what it was shown."""

    def update(gramian, state, *, losses=None, **extra_args):
        return jnp.ones(2), {"gramian": gramian, "losses": losses, **extra_args}

    return Weighting(lambda num_terms: {"gramian": jnp.zeros((2, 2))}, update)


SPY = reweight(spy(), 2)


def swap():
    """A mixing matrix that exchanges two terms, and doubles one of them."""

    def update(gramian, state, *, losses=None, **extra_args):
        return jnp.array([[0.0, 2.0], [1.0, 0.0]]), state

    return Weighting(lambda num_terms: (), update, reads_gramian=False)


def test_the_weighting_sees_the_gramian_of_all_leaves():
    grads = draw(2)
    _, state = first_step(SPY, grads, PARAMS)
    rows = flat(grads)
    np.testing.assert_allclose(state.weighting["gramian"], rows @ rows.T, rtol=1e-5)


@pytest.mark.parametrize("num_terms", [2, 8, 9, 20])
def test_the_gramian_of_any_shape(num_terms):
    """Each leaf is a group, so that one program finds the gramians of all shapes."""
    shapes = [(), (7,), (5, 3), (4, 2, 3), (0,), (1, 40)]
    rng = np.random.default_rng(1)
    leaves = [
        rng.normal(size=(num_terms, *shape)).astype(np.float32) for shape in shapes
    ]
    keep = Weighting(
        lambda num_terms: jnp.zeros((num_terms, num_terms)),
        lambda gramian, state, **extra_args: (jnp.ones(num_terms), gramian),
    )
    tx = reweight(keep, num_terms, groups="leaf")
    _, state = first_step(tx, leaves)
    for leaf, gramian in zip(leaves, state.weighting, strict=True):
        rows = leaf.reshape(num_terms, -1).astype(np.float64)
        size = max(float(np.max(np.sum(rows**2, axis=1))), 1e-30)
        np.testing.assert_allclose(gramian, rows @ rows.T, atol=1e-6 * size)


def test_bfloat16_gradients_give_a_float32_gramian():
    grads = draw(2, dtype=jnp.bfloat16)
    _, state = first_step(SPY, grads, PARAMS)
    rows = flat(grads)
    assert state.weighting["gramian"].dtype == jnp.float32
    np.testing.assert_allclose(state.weighting["gramian"], rows @ rows.T, rtol=1e-5)


def test_weights_scale_the_terms():
    grads = draw(3)
    tx = reweight(constant([1.0, 0.0, 2.5]), 3)
    updates, state = first_step(tx, grads, PARAMS)
    for name, leaf in grads.items():
        np.testing.assert_allclose(updates[name][0], leaf[0])
        np.testing.assert_array_equal(updates[name][1], np.zeros_like(leaf[1]))
        np.testing.assert_allclose(updates[name][2], 2.5 * leaf[2], rtol=1e-6)
    np.testing.assert_array_equal(optax.tree.get(state, "weights"), [1.0, 0.0, 2.5])


def test_a_matrix_mixes_the_terms():
    grads = draw(2)
    tx = reweight(swap(), 2)
    updates, state = first_step(tx, grads, PARAMS)
    expected = jax.tree.map(lambda leaf: np.stack([2 * leaf[1], leaf[0]]), grads)
    assert_close(updates, expected, rtol=1e-7)
    assert state.weights.shape == (2, 2)


def test_before_the_first_step_the_weights_are_neutral():
    for weighting, terms, neutral in ((equal(), 3, np.ones(3)), (swap(), 2, np.eye(2))):
        state = jax.jit(reweight(weighting, terms).init)(PARAMS)
        np.testing.assert_array_equal(state.weights, neutral)


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("global", [("b", "s", "w")]),
        ("leaf", [("b",), ("s",), ("w",)]),
        ({"w": "x", "b": "x", "s": "y"}, [("b", "w"), ("s",)]),
        (
            lambda tree: {name: "y" if name == "s" else "x" for name in tree},
            [("b", "w"), ("s",)],
        ),
    ],
)
def test_each_group_has_a_gramian_of_its_own(groups, members):
    grads = draw(2)
    tx = reweight(mgda(), 2, groups=groups)
    updates, _ = first_step(tx, grads, PARAMS)
    for names in members:
        first, second = flat(grads, names)
        apart = first - second
        alpha = np.clip(-second @ apart / (apart @ apart), 0, 1)
        for name in names:
            np.testing.assert_allclose(updates[name][0], alpha * grads[name][0], 1e-4)


def test_losses_arrive_as_a_vector_in_the_order_of_their_leaves():
    two = np.float32(2.0)
    for losses in (np.float32([1, 2]), {"a": 1.0, "b": two}, (1.0, two)):
        _, state = first_step(SPY, draw(2), PARAMS, losses=losses)
        np.testing.assert_array_equal(state.weighting["losses"], [1.0, 2.0])


def test_other_extra_arguments_reach_the_weighting():
    _, state = first_step(SPY, draw(2), PARAMS, value=3.0)
    assert state.weighting["value"] == 3.0


def test_zero_gradients_stay_finite():
    tx = reweight(mgda(), 2)
    zeros = jax.tree.map(np.zeros_like, draw(2))
    updates, state = first_step(tx, zeros, PARAMS)
    assert_finite(updates)
    assert_finite(state)


@pytest.mark.usefixtures("own_errors")
class TestErrors:
    def test_missing_losses(self):
        tx = reweight(mgda("loss"), 2)
        with pytest.raises(ValueError, match="losses") as error:
            first_step(tx, draw(2), PARAMS)
        assert_message(error.value, "reweight", "losses=losses", "found none")

    @pytest.mark.parametrize("losses", [np.ones(3), {"a": 1.0}, (1.0, 2.0, 3.0)])
    def test_wrong_number_of_losses(self, losses):
        tx = reweight(mgda("loss"), 2)
        with pytest.raises(ValueError, match=r"losses must hold num_terms=2 values"):
            first_step(tx, draw(2), PARAMS, losses=losses)

    def test_losses_that_are_not_scalars(self):
        tx = reweight(mgda("loss"), 2)
        losses = {"a": np.ones(4), "b": np.ones(())}
        with pytest.raises(ValueError, match=r"losses\['a'\] has shape \(4,\)"):
            first_step(tx, draw(2), PARAMS, losses=losses)

    def test_something_that_is_no_weighting(self):
        with pytest.raises(TypeError, match=r"weighting must be .* found"):
            reweight(optax.adam(1.0), 2)

    def test_a_factory_instead_of_a_weighting(self):
        with pytest.raises(TypeError, match=r"weighting must be .*mgda\(\)"):
            reweight(mgda, 2)

    def test_wrong_number_of_terms(self):
        tx = reweight(mgda(), 3)
        with pytest.raises(ValueError, match=r"num_terms=3, but the term axis has 2"):
            first_step(tx, draw(2), PARAMS)

    def test_constant_weights_of_another_length(self):
        with pytest.raises(ValueError, match=r"weights must have shape \(3,\)"):
            reweight(constant([1.0, 2.0]), 3).init(PARAMS)

    def test_labels_of_another_tree(self):
        tx = reweight(mgda(), 2, groups={"w": "x", "other": "y"})
        with pytest.raises(ValueError, match="groups must be a tree of labels"):
            tx.init(PARAMS)


def test_a_skipped_step_of_a_plain_chain_has_zero_updates():
    tx = reweight(inexact_mgda(1e9), 2)
    updates, state = first_step(tx, draw(2), PARAMS)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates))
    assert int(optax.tree.get(state, "skipped")) == 1
