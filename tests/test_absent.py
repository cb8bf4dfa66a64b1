"""Terms that are absent from a step: the extra argument ``present``.

A step with absent terms is the step of the problem that consists of the present ones
only, and what the state holds of an absent term stays. Every stage and optimizer is
held to this; new ones are found by tests/_factories.py.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    adaptive_mgda,
    adatask_adam,
    balance_by_norm,
    by_norm,
    dual_balanced,
    equal,
    grad_drop,
    inexact_mgda,
    krum,
    ladatask_rmsprop,
    lbtw,
    lr_annealing,
    metabalance,
    metrics,
    mtadam,
    one_at_a_time,
    per_term,
    reweight,
    scale_by_max_adam,
    sum_terms,
    weighted,
)
from tests import _factories
from tests._absent import PARAMS, STEPS, K, draw, spoiled
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_single_trace,
    assert_zero,
    named_leaves,
)
from tests._params import some


def momentum():
    """An inner optimizer that remembers, in few operations."""
    return optax.sgd(0.1, momentum=0.9)


VARIANTS = {
    "balance_by_norm, global": lambda k: balance_by_norm(k, groups="global"),
    "reweight": lambda k: reweight(krum(0), k, groups="leaf"),
    # The momentum of an absent term stays, and so does its norm.
    "one_at_a_time": lambda k: one_at_a_time(by_norm(0.0), k),
    "scale_by_max_adam, mean": lambda k: scale_by_max_adam(k, reduction="mean"),
    "scale_by_max_adam, amsgrad": lambda k: scale_by_max_adam(k, amsgrad=True),
    "scale_by_max_adam, own, amsgrad": lambda k: scale_by_max_adam(
        k, reduction="own", amsgrad=True
    ),
    # The anchor is one of the present terms.
    "lr_annealing": lambda k: lr_annealing(k, anchor=k - 1),
    "lr_annealing, mean, plain": lambda k: lr_annealing(
        k, statistic="mean", anchor=k - 1, plain=True
    ),
    "dual_balanced": lambda k: dual_balanced(k, anchor=k - 1),
    # One that remembers the losses, and one that skips steps, as adaptive_mgda does.
    "weighted": lambda k: weighted(lbtw(), momentum(), k),
    "weighted, inexact_mgda": lambda k: weighted(inexact_mgda(0.01), momentum(), k),
    # The main term is one of the present ones.
    "metabalance": lambda k: metabalance(momentum(), k, anchor=k - 1),
    "ladatask_rmsprop, grad_sum, labels": lambda k: ladatask_rmsprop(
        0.1, k, total="grad_sum", groups={"dense": "x", "frozen": "x", "rest": "x"}
    ),
    # No epoch ends, which would renew the bounds of all terms.
    "adaptive_mgda": lambda k: adaptive_mgda(momentum(), k, steps_per_epoch=99),
    "metrics.track_dominance": metrics.track_dominance,
}
CASES = {
    **{
        factory.name: lambda k, factory=factory: factory.build(num_terms=k)
        for factory in _factories.factories()
        if factory.stage != "wrappers" or factory.name == "weighted"
    },
    **VARIANTS,
}
# By default one of those that differ only in how the terms are weighted or summed.
SLOW = {
    "balance_by_norm, global",
    "weighted, inexact_mgda",
    "lr_annealing, mean, plain",
    "ladatask_rmsprop",
    "scale_by_max_adam",
    "scale_by_max_adam, amsgrad",
    "scale_by_max_adam, mean",
    "adatask_adagrad",
    "adatask_rmsprop",
}


each_case = pytest.mark.parametrize("case", some(CASES, CASES.keys() - SLOW))


def draw_for_cases(seed=0):
    """The same on the parameters of tests/test_contract.py, and so for its programs."""
    return draw(seed=seed, params=_factories.example_params(np.float64))


@functools.cache
def compiled(case, terms):
    tx = CASES[case](terms)
    return tx, jax.jit(CountedTraces(tx.update))


def run(case, grads, losses, masks=None, terms=K):
    """Updates and states of every step, stacked, in NumPy."""
    tx, update = compiled(case, terms)
    params = _factories.example_params(np.float64)
    state, history = tx.init(params), []
    for t in range(STEPS):
        extra = {} if masks is None else {"present": masks[t]}
        grad = jax.tree.map(lambda g, t=t: g[t], grads)
        updates, state = update(grad, state, params, losses=losses[t], **extra)
        history.append((updates, state))
    return jax.tree.map(lambda *x: np.stack(x), *history)


def entries(state, other, terms):
    """Of each leaf the entries of the listed terms.

    ``other`` is the state of the same method for another number of terms, by which the
    term axes, and there may be two, are known.
    """

    def pick(leaf, small):
        for axis, (size, fewer) in enumerate(zip(leaf.shape, small.shape, strict=True)):
            if size != fewer:
                leaf = np.take(leaf, terms, axis)
        return leaf

    return jax.tree.map(pick, state, other)


@each_case
def test_a_term_that_is_never_there_is_no_term(x64, case):
    # The first term, the default anchor, and the largest one.
    masks = np.tile([False, True, True], (STEPS, 1))
    grads, losses = draw_for_cases()
    updates, states = run(case, spoiled(grads, masks), spoiled(losses, masks), masks)
    fewer = jax.tree.map(lambda g: g[:, 1:], grads)
    expected, alone = run(case, fewer, losses[:, 1:], terms=2)
    leaves, treedef = jax.tree.flatten(updates)
    for i, leaf in enumerate(jax.tree.leaves(expected)):
        if leaves[i].shape == leaf.shape:
            continue
        if case != "metrics.track_dominance":  # it passes on what it gets
            assert_zero(leaves[i][:, 0])
        leaves[i] = leaves[i][:, 1:]
    updates = jax.tree.unflatten(treedef, leaves)
    assert np.any(expected["dense"]["w"] != 0)
    # Two terms have a closed form in MGDA, three have not.
    rtol = 1e-8 if "mgda" in case else 1e-12
    assert_close(updates, expected, rtol=rtol)
    assert_close(entries(states, alone, [1, 2]), alone, rtol=rtol)


@each_case
@pytest.mark.parametrize("absent", [0, 2])
def test_what_the_state_holds_of_an_absent_term_stays(x64, case, absent):
    masks = np.ones((STEPS, K), bool)
    masks[2:5, absent] = False
    grads, losses = draw_for_cases(seed=1)
    updates, states = run(case, spoiled(grads, masks), spoiled(losses, masks), masks)
    if case != "metrics.track_dominance":
        assert_finite(updates)
    assert_finite(states)
    small = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((STEPS, *leaf.shape), leaf.dtype),
        jax.eval_shape(CASES[case](2).init, _factories.example_params(np.float64)),
    )
    for path, own in named_leaves(entries(states, small, [absent])):
        shared = dict(named_leaves(states))[path].shape == own.shape
        if shared:
            continue
        if path.endswith(".weights") or ".weights[" in path:
            assert_zero(own[2:5])  # the weights of the last step, nothing remembered
        else:
            np.testing.assert_array_equal(own[2:5], own[[1, 1, 1]], err_msg=path)


@each_case
def test_with_no_term_there_nothing_moves(x64, case):
    masks = np.zeros((STEPS, K), bool)
    grads, losses = draw_for_cases()
    updates, states = run(case, spoiled(grads, masks), spoiled(losses, masks), masks)
    if case != "metrics.track_dominance":
        assert_zero(updates)
    assert_finite(states)
    # Nor is anything spoiled when it happens later on.
    masks[:3] = masks[5:] = True
    updates, states = run(case, spoiled(grads, masks), spoiled(losses, masks), masks)
    if case != "metrics.track_dominance":
        assert_finite(updates)
    assert_finite(states)


# Terms that are there are compared with the default above, as a smaller problem: what
# is new here is the number of them, and one of each kind is enough.
WHOLE = {"balance_by_norm", "grad_drop", "scale_by_max_adam", "mtadam", "weighted"}


@pytest.mark.parametrize("case", some(CASES, WHOLE))
def test_all_there_is_the_default(x64, case):
    grads, losses = draw_for_cases(seed=2)
    found = run(case, grads, losses, np.ones((STEPS, K), bool))
    assert_close(found, run(case, grads, losses), rtol=1e-12)


BAD = {
    "too few": np.ones(2, bool),
    "a number": True,
    "a matrix": np.ones((3, 1), bool),
    "integers": np.ones(3, int),
    "floats": jnp.ones(3),
}


@pytest.mark.parametrize(
    ("case", "bad"),
    [*((case, "too few") for case in CASES), *(("mtadam", b) for b in BAD)],
)
def test_a_wrong_mask_is_named(own_errors, case, bad):
    tx, params = CASES[case](K), _factories.example_params(np.float32)
    grads = jax.tree.map(lambda p: np.ones((K, *p.shape), np.float32), params)
    losses = np.ones(K, np.float32)
    with pytest.raises(ValueError, match="present must be") as caught:
        jax.eval_shape(
            lambda g, s: tx.update(g, s, losses=losses, present=BAD[bad]),
            grads,
            jax.eval_shape(tx.init, params),
        )
    assert_message(caught.value, "(3,)", "found", str(np.shape(BAD[bad])))


def test_something_that_is_no_array_is_named(own_errors):
    tx = sum_terms()
    with pytest.raises(TypeError, match="present must be an array of 2 booleans"):
        tx.update(jnp.ones((2, 3)), tx.init(None), present={"a": True, "b": "no"})


def test_leaves_of_different_numbers_of_terms_have_no_mask():
    for tx in (sum_terms(), grad_drop(jax.random.key(0))):
        grads = {"a": np.ones((2, 4)), "b": np.ones((1, 4))}
        with pytest.raises(ValueError, match="the same number of terms"):
            tx.update(grads, tx.init(None), present=np.array([True, False]))


# --- what is shared by the terms -----------------------------------------------------


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_momentum_left_by_an_absent_term_keeps_its_denominator(x64, reduction):
    # A head that only the absent term touches: no other term has a second moment
    # there, and what is left of the momentum must not be divided by eps.
    tx = scale_by_max_adam(2, reduction=reduction)
    state, steps = tx.init(np.zeros(1)), []
    grads, update = np.array([[1e-3], [0.0]]), jax.jit(tx.update)
    for t in range(30):
        updates, state = update(grads, state, present=np.array([t < 10, True]))
        steps.append(np.asarray(updates)[0])
    assert 0.9 < steps[9] < 1.5
    np.testing.assert_allclose(np.divide(steps[20:], steps[19:-1]), 0.9, rtol=0.03)


def test_a_group_keeps_its_size_while_the_anchor_is_absent():
    tx = balance_by_norm(2)
    grads, update = np.float32([[3.0, 4.0], [0.0, 1000.0]]), jax.jit(tx.update)
    start = tx.init(np.zeros(2, np.float32))
    _, state = update(grads, start, present=np.array([True, True]))
    updates, _ = update(grads, state, present=np.array([False, True]))
    assert_close(updates, np.array([[0.0, 0.0], [0.0, 5.0]]), rtol=1e-6)


def test_dominance_of_an_absent_term_does_not_fade():
    tx = metrics.track_dominance(2, decay=0.5)
    state, update = tx.init(np.zeros(1, np.float32)), jax.jit(tx.update)
    ones = np.ones((2, 1), np.float32)
    for t in range(20):
        _, state = update(ones, state, present=np.array([t < 5, True]))
    assert np.asarray(state.squared_updates)[0, 0] == 1 - 0.5**5


def test_eps_of_zero_divides_nothing_by_nothing():
    def step(reduction):
        tx = scale_by_max_adam(2, eps=0.0, reduction=reduction)
        nobody, state = jnp.zeros(2, bool), tx.init(jnp.zeros(3))
        return tx.update(jnp.ones((2, 3)), state, present=nobody)[0]

    assert_zero(jax.jit(lambda: [step(how) for how in ("max", "mean", "own")])())


# --- travelling ----------------------------------------------------------------------


def test_through_a_chain_with_a_traced_mask_in_one_trace():
    tx = optax.chain(
        balance_by_norm(K),
        per_term(optax.scale_by_rms(), K),
        metrics.track_dominance(K),
        sum_terms(),
        optax.clip_by_global_norm(1.0),
        optax.sgd(0.1, momentum=0.9),
    )
    grads, _ = draw()
    params = jax.tree.map(jnp.float32, PARAMS)
    counted = CountedTraces(tx.update)
    update, state = jax.jit(counted), tx.init(params)
    for t in range(STEPS):
        mask = np.arange(K) != t % K
        grad = jax.tree.map(
            lambda g, t=t, mask=mask: jnp.float32(spoiled(g[t : t + 1], mask[None])[0]),
            grads,
        )
        updates, state = update(grad, state, params, present=mask)
        assert_finite(updates)
    assert_single_trace(counted)
    assert_finite(state)


def test_a_list_of_booleans_will_do():
    tx, grads = sum_terms(), jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    found, _ = tx.update(grads, tx.init(None), present=[True, False])
    assert_identical(found, grads[0])


def test_present_stays_with_per_term_and_weighted():
    # The inner transformation sees one term, or the sum: a mask means nothing there. Of
    # the sum it is told the gradient, too.
    seen = []

    def update(updates, state, params=None, **extra_args):
        seen.append(extra_args)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    params, grads = np.zeros(3, np.float32), np.ones((2, 3), np.float32)
    mask = np.array([True, False])
    for tx in (per_term(inner, 2), weighted(equal(), inner, 2)):
        state = jax.eval_shape(tx.init, params)
        step = functools.partial(tx.update, present=mask, value=1.0)
        jax.eval_shape(step, grads, state)
    assert [one.pop("value") for one in seen] == [1.0, 1.0]
    assert [list(one) for one in seen] == [[], ["grad"]]


@pytest.mark.parametrize("optimizer", [mtadam, adatask_adam])
def test_masked_update_copies_nothing(optimizer):
    params = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    tx = optimizer(0.1, 4)

    def step(params, state, grads, present):
        updates, state = tx.update(grads, state, params, present=present)
        return optax.apply_updates(params, updates), state

    program = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(
            params,
            jax.eval_shape(tx.init, params),
            jax.ShapeDtypeStruct((4, 256, 256), jnp.float32),
            jax.ShapeDtypeStruct((4,), jnp.bool_),
        )
        .compile()
    )
    assert program.memory_analysis().temp_size_in_bytes <= 0.05 * 4 * params.size


def test_the_page_does_what_it_says():
    page = Path(__file__).resolve().parents[1] / "docs" / "absent_terms.md"
    blocks = page.read_text(encoding="utf-8").split("```python\n")[1:]
    names = {}
    for block in blocks:
        exec(compile(block.split("```")[0], page.name, "exec"), names)
    assert_finite(names["params"])
    for name, loss in names["final_losses"].items():
        assert loss < 0.1 * names["first_losses"][name], name
    assert_identical(names["nobody"], jax.tree.map(jnp.zeros_like, names["params"]))
