"""Balancing by norm: who sets the size, who is silent, what a group is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiterm_optax import balance_by_norm
from tests._asserts import (
    assert_close,
    assert_different,
    assert_finite,
    assert_identical,
    assert_zero,
)
from tests._runs import all_steps, first_step

K = 3
SHAPES = {"a": {"w": (2, 2), "b": ()}, "c": (3,)}


def make_params(dtype=None):
    """Zeros, in double precision where a test enables it."""
    dtype = jnp.result_type(float) if dtype is None else dtype

    def is_shape(x):
        return isinstance(x, tuple)

    return jax.tree.map(lambda s: np.zeros(s, dtype), SHAPES, is_leaf=is_shape)


def draw(seed, steps=None):
    """Random per-term gradients, leaves [K, *p], or [steps, K, *p]."""
    lead = (K,) if steps is None else (steps, K)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: np.asarray(rng.normal(size=(*lead, *p.shape)), p.dtype),
        make_params(),
    )


def times(factors, grads):
    """Multiplies term i by factors[i]."""
    factors = np.asarray(factors)
    return jax.tree.map(
        lambda g: g * factors.reshape(-1, *(1,) * (g.ndim - 1)).astype(g.dtype), grads
    )


def each_step(factors, grads):
    """The same with an axis for steps in front."""
    return jax.tree.map(lambda g: np.stack([times(factors, x) for x in g]), grads)


# One and the same for equal arguments, so that tests share what it is compiled to.
balance = functools.cache(balance_by_norm)


def once(tx, grads, params=None):
    return first_step(tx, grads, make_params() if params is None else params)[0]


def many(tx, grads, params=None):
    """Updates of every step, leaves [steps, K, *p]."""
    return all_steps(tx, grads, make_params() if params is None else params)[0]


def norms(tree):
    """Norm of each term over all leaves, [K]."""
    return np.sqrt(
        sum(
            np.sum(np.square(np.asarray(g, np.float64)).reshape(g.shape[0], -1), axis=1)
            for g in jax.tree.leaves(tree)
        )
    )


@pytest.mark.parametrize("anchor", [None, 0, 2])
def test_first_step_gives_every_term_the_anchor_s_norm(x64, anchor):
    grads = times([1.0, 1e4, 1e-4], draw(0))
    updates = once(balance_by_norm(K, anchor=anchor), grads)
    chosen = 0 if anchor is None else anchor
    for before, after in zip(
        jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True
    ):
        assert_close(norms(after), np.full(K, norms(before)[chosen]), rtol=1e-12)
        directions = [
            x.reshape(K, -1) / np.linalg.norm(x.reshape(K, -1), axis=1, keepdims=True)
            for x in (before, after)
        ]
        assert_close(directions[1], directions[0], rtol=1e-12)
    assert_close(
        jax.tree.map(lambda u: u[chosen], updates),
        jax.tree.map(lambda g: g[chosen], grads),
        rtol=1e-12,
    )


def test_global_group_has_one_norm_for_all_leaves(x64):
    updates = once(balance_by_norm(K, groups="global"), times([1.0, 9.0, 0.1], draw(1)))
    assert_close(norms(updates), np.full(K, norms(draw(1))[0]), rtol=1e-12)


LABELS = {"a": {"w": "x", "b": "y"}, "c": "x"}
LABELLED = balance_by_norm(K, groups=LABELS)


def test_labels_pool_the_leaves_they_name(x64):
    grads = times([1.0, 30.0, 0.2], draw(2))
    updates = once(LABELLED, grads)

    def pools(t):
        return {"x": [t["a"]["w"], t["c"]], "y": [t["a"]["b"]]}

    for group in "xy":
        found, before = norms(pools(updates)[group]), norms(pools(grads)[group])
        assert_close(found, np.full(K, before[0]), rtol=1e-12)


PREFIX = balance_by_norm(K, groups={"a": "x", "c": "y"})


@pytest.mark.parametrize(
    ("groups", "same"),
    [
        ({"a": {"w": "x", "b": "x"}, "c": "y"}, PREFIX),
        (lambda p: {"a": "x", "c": "y"}, PREFIX),
        ({"a": {"w": 1, "b": 2}, "c": 3}, balance(K, groups="leaf")),
        ({"a": "x", "c": "x"}, balance(K, groups="global")),
    ],
    ids=["prefix", "callable", "each leaf", "all leaves"],
)
def test_ways_to_state_the_same_groups(x64, groups, same):
    grads = draw(3, steps=4)
    found = many(balance_by_norm(K, groups=groups), grads)
    assert_close(found, many(same, grads), rtol=1e-12)


def test_groups_differ(x64):
    stages = balance(K, groups="leaf"), balance(K, groups="global"), LABELLED
    results = [once(tx, draw(4)) for tx in stages]
    for i in range(3):
        assert_different(results[i], results[i - 1])


@pytest.mark.parametrize("with_params", [True, False])
def test_label_function_is_of_the_parameters(x64, with_params):
    # A rule such as "matrices apart from the rest" must give one answer in ``init``,
    # where leaves are [*p], and in ``update``, where they are [K, *p].
    def rule(p):
        return jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "rest", p)

    params = {"w": np.zeros((2, 2)), "b": np.zeros(2), "c": np.zeros(())}
    named = {"w": "matrix", "b": "rest", "c": "rest"}
    rng = np.random.default_rng(0)
    grads = {k: rng.normal(size=(K, *p.shape)) for k, p in params.items()}
    given = params if with_params else None

    @jax.jit
    def both(params, grads, given):
        stages = [balance_by_norm(K, groups=groups) for groups in (rule, named)]
        return [tx.update(grads, tx.init(params), given)[0] for tx in stages]

    assert_close(*both(params, grads, given), rtol=1e-12)


@given(st.floats(-6, 6), st.sampled_from(["leaf", "global"]))
def test_scaling_all_losses_scales_the_result(exponent, groups):
    with jax.enable_x64(True):
        scale, tx, grads = 10.0**exponent, balance(K, groups=groups), draw(5, steps=4)
        scaled = many(tx, jax.tree.map(lambda g: scale * g, grads))
        expected = jax.tree.map(lambda u: scale * u, many(tx, grads))
        assert_close(scaled, expected, rtol=1e-12)


@given(st.lists(st.floats(-4, 4), min_size=K, max_size=K))
def test_a_term_s_own_scale_does_not_matter(exponents):
    # All that is left of the sizes is the anchor's.
    with jax.enable_x64(True):
        factors, tx = 10.0 ** np.asarray(exponents), balance(K, groups="leaf")
        grads = draw(6, steps=4)
        expected = jax.tree.map(lambda u: factors[0] * u, many(tx, grads))
        assert_close(many(tx, each_step(factors, grads)), expected, rtol=1e-11)


def test_norm_init_depends_on_the_scale_as_the_paper_prints_it(x64):
    grads = jax.tree.map(lambda g: 1e-6 * g, draw(7))
    updates = once(balance_by_norm(K, norm_init=1.0), times([1.0, 1.0, 50.0], grads))
    # Next to n = 1 no gradient of 1e-6 weighs anything: the sizes pass unchanged.
    assert_close(updates, times([1.0, 1.0, 50.0], grads), rtol=1e-3)
    start = jax.jit(balance_by_norm(K, norm_init=2.5).init)(make_params())
    assert_close(start.norms["c"], np.full(K, 2.5), rtol=0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_norms_are_averaged_from_the_first_one_seen(x64, decay):
    sizes = np.array([[2.0, 0.0], [3.0, 0.0], [1.0, 4.0], [5.0, 0.0], [0.0, 8.0]])
    _, states = all_steps(balance_by_norm(2, decay), sizes)
    expected = np.zeros(2)
    for size, found in zip(sizes, states.norms, strict=True):
        for i in range(2):
            if expected[i] == 0:
                expected[i] = size[i]
            else:
                expected[i] = decay * expected[i] + (1 - decay) * size[i]
            # decay = 0 forgets: a zero average is seeded anew, with the same result.
        assert_close(found, expected, rtol=1e-14)


@pytest.mark.parametrize("wakes", [1, 5, 50])
def test_term_that_wakes_late_gets_the_anchor_s_size_at_once(x64, wakes):
    grads = np.ones((51, 2, 4))
    grads[:, 1] *= 1e3
    grads[:wakes, 1] = 0
    updates = many(balance(2), grads, np.zeros(4))
    assert_zero(updates[:wakes, 1])
    assert_close(updates[wakes, 1], updates[wakes, 0], rtol=1e-12)


def test_silent_terms_pass_and_do_not_set_the_size(x64):
    grads = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    updates = once(balance(3), grads, np.zeros(2))
    # The first term says nothing here: the second sets the size.
    assert_close(updates, np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 5.0]]), rtol=1e-14)


@pytest.mark.parametrize(
    ("ratio", "silent"), [(1e-12, True), (0.99e-10, True), (1.01e-10, False)]
)
def test_silence_is_relative(x64, ratio, silent):
    for scale in (1e-20, 1.0, 1e20):
        grads = scale * np.array([[1.0], [ratio]])
        updates = once(balance(2), grads, np.zeros(1))
        expected = grads if silent else scale * np.ones((2, 1))
        assert_close(updates / scale, expected / scale, rtol=1e-12)


def test_eps_sets_where_silence_begins(x64):
    grads = np.array([[1.0], [0.01]])
    params = np.zeros(1)
    loud = once(balance_by_norm(2, eps=0.001), grads, params)
    quiet = once(balance_by_norm(2, eps=0.1), grads, params)
    assert_close(loud, np.array([[1.0], [1.0]]), rtol=1e-14)
    assert_close(quiet, grads, rtol=0)


def test_silent_term_is_no_anchor_by_eps(x64):
    grads = np.array([[1e-12], [1.0], [4.0]])
    updates = once(balance(3), grads, np.zeros(1))
    assert_close(updates, np.array([[1e-12], [1.0], [1.0]]), rtol=1e-14)


def test_head_of_one_term_is_left_as_it_is(x64):
    params = {"trunk": np.zeros(2), "head": np.zeros(2)}
    grads = {
        "trunk": np.array([[1.0, 0.0], [0.0, 9.0]]),
        "head": np.array([[0.0, 0.0], [5.0, 7.0]]),
    }
    updates = once(balance(2), grads, params)
    assert_identical(updates["head"], grads["head"])
    fixed = once(balance_by_norm(2, anchor=0), grads, params)
    assert_zero(fixed["head"])


def test_choice_of_the_anchor_is_per_group_and_step(x64):
    # Sizes 2 and 8 with decay 0: each step is alone.
    grads = np.array([[[2.0], [8.0]], [[0.0], [8.0]], [[2.0], [8.0]]])
    updates = many(balance_by_norm(2, 0.0), grads, np.zeros(1))
    expected = np.array([[[2.0], [2.0]], [[0.0], [8.0]], [[2.0], [2.0]]])
    assert_close(updates, expected, rtol=1e-14)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("groups", ["leaf", "global"])
def test_any_order_of_terms_changes_one_factor_a_group(x64, order, groups):
    # The first term in the new order sets the size: the result is permuted, and
    # multiplied in each group by the ratio of the two anchors' averaged norms.
    grads, picked = draw(8, steps=4), np.array(order)
    tx = balance(K, groups=groups)
    plain, states = all_steps(tx, grads, make_params())
    permuted = many(tx, jax.tree.map(lambda g: g[:, picked], grads))
    by_leaf = states.norms
    if groups == "global":
        by_leaf = jax.tree.map(lambda _: by_leaf, make_params())
    for step in range(4):
        expected = jax.tree.map(
            lambda u, n, s=step: u[s][picked] * n[s, picked[0]] / n[s, 0],
            plain,
            by_leaf,
        )
        found = jax.tree.map(lambda u, s=step: u[s], permuted)
        assert_close(found, expected, rtol=1e-12)


def test_weights_multiply_the_balanced_terms(x64):
    weights = [2.0, 0.0, 0.5]
    grads = draw(9, steps=4)
    weighed = many(balance_by_norm(K, weights=weights), grads)
    plain = many(balance(K, groups="leaf"), grads)
    assert_close(weighed, each_step(weights, plain), rtol=1e-12)


@pytest.mark.parametrize("kind", [list, np.float32, jnp.float32])
def test_weights_may_be_any_vector(kind):
    weights = (1.0, 2.0, 3.0)
    found = once(balance_by_norm(K, weights=kind(weights)), draw(9))
    assert_identical(found, once(balance(K, weights=weights), draw(9)))


def test_state_is_k_numbers_a_group():
    for groups, count in (("leaf", 3), ("global", 1), (LABELS, 2)):
        state = jax.eval_shape(balance_by_norm(K, groups=groups).init, make_params())
        leaves = jax.tree.leaves(state)
        assert [leaf.shape for leaf in leaves] == [(K,)] * count


def test_half_precision_norms_do_not_overflow():
    # 300^2 is more than float16 holds.
    params = np.zeros(4, np.float16)
    grads = np.full((2, 4), 300.0, np.float16)
    grads[1] *= 0.01
    updates, state = first_step(balance(2), grads, params)
    assert updates.dtype == jnp.float16
    assert state.norms.dtype == jnp.float32
    assert_close(updates, np.full((2, 4), 300.0), rtol=2e-3)


@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1e10, 1e18])
def test_single_precision_over_thirty_six_orders(scale):
    grads = np.float32(np.array([[3.0, 4.0], [0.0, 0.5], [1.0, -1.0]]) * scale)
    updates = once(balance(3), grads, np.zeros(2, np.float32))
    assert_close(norms(updates) / scale, np.full(3, 5.0), rtol=1e-6)


def test_all_silent_is_no_division_by_zero():
    grads = draw(0, steps=4)
    for leaf in jax.tree.leaves(grads):
        leaf[:2] = 0
    updates, states = all_steps(balance(K, groups="leaf"), grads, make_params())
    assert_zero(jax.tree.map(lambda x: x[:2], (updates, states)))
    assert_finite(updates)


def test_hyperparameters_may_be_traced(x64):
    grads, params = draw(10, steps=3), make_params()
    options = {"decay": 0.7, "norm_init": 0.5, "eps": 1e-9}
    traced = optax.inject_hyperparams(balance_by_norm, static_args=("num_terms",))
    found = many(traced(num_terms=K, **options), grads, params)
    expected = many(balance_by_norm(K, **options), grads, params)
    assert_close(found, expected, rtol=1e-12)
