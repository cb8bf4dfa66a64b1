"""apply_if_finite: a term that is not finite is left out, or the whole step."""

import jax
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_same_signature,
    assert_single_trace,
    assert_zero,
)
from tests._runs import all_steps, first_step
from tests.wrappers._recorder import recorder

K = 3
PARAMS = {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}
BAD = (np.nan, np.inf, -np.inf)


def draw(steps, terms=K, seed=0):
    """Finite gradients [steps, K, *p] in NumPy."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(steps, terms, *leaf.shape)).astype(np.float32)
        for name, leaf in PARAMS.items()
    }


def spoil(grads, step, term, leaf=0):
    """Puts one value that is not finite into one leaf of one term."""
    value = BAD[(step + term) % 3]
    list(grads.values())[leaf][step, term].flat[-1] = value


def at(tree, step):
    return jax.tree.map(lambda x: x[step], tree)


def without(grads, absent):
    """The gradients of one step with zeros in place of some terms."""
    kept = np.ones(K, bool)
    kept[list(absent)] = False
    return jax.tree.map(
        lambda g: np.where(kept.reshape(K, *(1,) * (g.ndim - 1)), g, 0), grads
    )


INNER = optax.trace(0.5)
THEIRS = {limit: optax.apply_if_finite(INNER, limit) for limit in (0, 2)}


@pytest.mark.parametrize("skip", ["term", "step"])
@pytest.mark.parametrize("limit", THEIRS)
def test_one_term_is_optax_apply_if_finite(skip, limit):
    failing = [0, 1, 1, 0, 1, 1, 1, 1, 0, 1]
    grads = draw(len(failing), 1)
    for step, fails in enumerate(failing):
        if fails:
            spoil(grads, step, 0, leaf=step % 2)
    ours = mt.apply_if_finite(mt.adatask(INNER, 1), 1, limit, skip=skip)
    start = jax.eval_shape(ours.init, PARAMS)
    counted = CountedTraces(ours.update)
    ours = ours._replace(update=counted)
    alone = jax.tree.map(lambda g: g[:, 0], grads)
    updates, states = all_steps(ours, grads, PARAMS)
    expected, other = all_steps(THEIRS[limit], alone, PARAMS)
    for found, wanted in zip(
        jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)  # NaN equals NaN
    for field in ("notfinite_count", "total_notfinite", "last_finite"):
        np.testing.assert_array_equal(
            getattr(states, field)[:, 0], getattr(other, field)
        )
    assert_same_signature(at(states, 0), start)
    assert_single_trace(counted)


RECORDER = mt.apply_if_finite(recorder(K), K, 5)


def test_a_term_that_fails_is_absent():
    grads = draw(1)
    spoil(grads, 0, 1)
    updates, state = first_step(RECORDER, at(grads, 0), PARAMS)
    seen = state.inner_state
    assert seen.present.tolist() == [True, False, True]
    expected = without(at(grads, 0), [1])
    assert_identical(seen.grads, expected)
    assert_close(updates, jax.tree.map(lambda g: g.sum(axis=0), expected), rtol=1e-6)
    assert state.last_finite.tolist() == [True, False, True]
    assert state.notfinite_count.tolist() == [0, 1, 0]
    assert int(state.notfinite_steps) == 1


def test_a_loss_that_is_not_finite_fails_its_term():
    grads = draw(1)
    losses = {"a": 1.0, "b": 2.0, "c": np.nan}
    _, state = first_step(RECORDER, at(grads, 0), PARAMS, losses=losses)
    assert state.inner_state.present.tolist() == [True, True, False]
    assert state.inner_state.losses.tolist() == [1.0, 2.0, 0.0]
    assert_identical(state.inner_state.grads, without(at(grads, 0), [2]))


def test_counts_follow_each_term():
    # Term 0 fails often, term 1 twice in a row, term 2 never. None: it is absent.
    failing = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]
    )
    here = np.ones((7, K), bool)
    here[4, 0] = here[2, 2] = False
    grads = draw(7)
    for step, term in zip(*np.nonzero(failing), strict=True):
        spoil(grads, step, term)
    tx = mt.apply_if_finite(recorder(K), K, 2)
    history = all_steps(tx, grads, PARAMS, present=here)
    in_a_row, total, last = np.zeros(K, int), np.zeros(K, int), np.ones(K, bool)
    for step in range(7):
        updates, state = at(history, step)
        for i in range(K):
            if here[step, i]:
                in_a_row[i] = in_a_row[i] + 1 if failing[step, i] else 0
                total[i] += failing[step, i]
                last[i] = not failing[step, i]
        assert state.notfinite_count.tolist() == in_a_row.tolist()
        assert state.total_notfinite.tolist() == total.tolist()
        assert state.last_finite.tolist() == last.tolist()
        let_through = in_a_row > 2
        used = here[step] & (~failing[step].astype(bool) | let_through)
        assert state.inner_state.present.tolist() == used.tolist()
        if not let_through.any():
            assert_finite(updates)
    # Steps 3, 5, 6 are three failures in a row: step 4, without the term, is no part.
    assert in_a_row.tolist() == [3, 0, 0]
    assert not np.isfinite(np.asarray(updates["w"])).all()


@pytest.mark.parametrize("skip", ["term", "step"])
def test_no_finite_term_skips_the_step(skip):
    grads = draw(2)
    for term in range(K):
        spoil(grads, 1, term)
    tx = mt.apply_if_finite(mt.adatask(optax.trace(0.5), K), K, 3, skip=skip)
    updates, states = all_steps(tx, grads, PARAMS)
    state, after = at(states, 0), at(states, 1)
    assert_zero(at(updates, 1))
    assert_identical(after.inner_state, state.inner_state)
    assert after.total_notfinite.tolist() == [1, 1, 1]


def test_a_step_is_skipped_for_one_term():
    grads = draw(4)
    for step, term in ((1, 0), (2, 1), (3, 2)):
        spoil(grads, step, term)
    tx = mt.apply_if_finite(recorder(K), K, 2, skip="step")
    updates, states = all_steps(tx, grads, PARAMS)
    assert_zero(jax.tree.map(lambda u: u[1:3], updates))
    # The third failing step in a row gets through, though each term failed but once.
    assert states.inner_state.count.tolist() == [1, 1, 1, 2]
    assert states.notfinite_steps.tolist() == [0, 1, 2, 3]
    updates, state = at((updates, states), 3)
    assert not np.isfinite(np.asarray(updates["w"])).all()
    assert state.notfinite_count.tolist() == [0, 0, 1]
    assert state.total_notfinite.tolist() == [1, 1, 1]
    assert not state.inner_state.present.any()  # nothing was forwarded in its name


@pytest.mark.parametrize("skip", ["term", "step"])
def test_of_an_absent_term_nothing_is_read(skip):
    grads = draw(1)
    spoil(grads, 0, 2)
    given = {
        "losses": np.float32([1.0, 2.0, np.nan]),
        "present": np.array([True, True, False]),
    }
    tx = mt.apply_if_finite(recorder(K), K, 5, skip=skip)
    _, state = first_step(tx, at(grads, 0), PARAMS, **given)
    assert state.notfinite_count.tolist() == [0, 0, 0]
    assert state.last_finite.all()
    assert int(state.notfinite_steps) == 0
    assert int(state.inner_state.count) == 1
    assert state.inner_state.present.tolist() == [True, True, False]


def test_all_absent_is_no_failure():
    _, state = first_step(RECORDER, at(draw(1), 0), PARAMS, present=np.zeros(K, bool))
    assert int(state.inner_state.count) == 1  # it is for inner to say what that means
    assert int(state.notfinite_steps) == 0


def test_present_terms_and_one_that_fails_may_leave_none():
    grads = draw(1)
    spoil(grads, 0, 0)
    only_first = np.array([True, False, False])
    updates, state = first_step(RECORDER, at(grads, 0), PARAMS, present=only_first)
    assert_zero(updates)
    assert int(state.inner_state.count) == 0


def test_a_stage_that_knows_of_no_absent_terms_gets_zeros():
    grads = draw(1)
    spoil(grads, 0, 1)
    inner = mt.chain(optax.clip_by_global_norm(0.1), mt.sum_terms())
    tx = mt.apply_if_finite(inner, K, 5)
    updates, _ = first_step(tx, at(grads, 0), PARAMS)
    left = {name: g[0, [0, 2]].astype(np.float64) for name, g in grads.items()}
    norm = np.sqrt(sum((g**2).sum() for g in left.values()))
    expected = {name: 0.1 / norm * g.sum(axis=0) for name, g in left.items()}
    assert_close(updates, expected, rtol=1e-5)


OPTIMIZERS = {
    "mtadam": lambda: mt.mtadam(0.1, K),
    "adatask": lambda: mt.adatask(optax.adam(0.1), K),
    "adatask_adam": lambda: mt.adatask_adam(0.1, K),
    "gradnorm": lambda: mt.weighted(mt.gradnorm(), optax.adam(0.1), K),
    "softadapt": lambda: mt.weighted(mt.softadapt(), optax.adam(0.1), K),
}


@pytest.mark.parametrize(
    "name",
    # A state for each term in a stage, and one in a weighting.
    [
        pytest.param(
            name, marks=[] if name in ("mtadam", "softadapt") else pytest.mark.slow
        )
        for name in OPTIMIZERS
    ],
)
def test_left_out_is_the_same_as_absent(name):
    """What the user would get who knows beforehand which terms fail."""
    failing = {2: 0, 3: 0, 4: 1, 6: 2}
    grads, losses = draw(8), np.random.default_rng(1).uniform(1, 2, size=(8, K))
    here = np.ones((8, K), bool)
    for step, term in failing.items():
        spoil(grads, step, term)
        here[step, term] = False
    inner = OPTIMIZERS[name]()
    losses = losses.astype(np.float32)
    tx = mt.apply_if_finite(inner, K, 5)
    updates, states = all_steps(tx, grads, PARAMS, losses=losses)
    expected, plain = all_steps(inner, grads, PARAMS, losses=losses, present=here)
    assert_finite(updates)
    for step in range(8):
        assert_close(at(updates, step), at(expected, step), rtol=1e-6)
    assert_close(at(states.inner_state, 7), at(plain, 7), rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
def test_bad_arguments_are_refused():
    inner = mt.mtadam(0.1, K)
    with pytest.raises(ValueError, match="max_consecutive_errors must be in"):
        mt.apply_if_finite(inner, K, -1)
    with pytest.raises(ValueError, match="skip must be one of 'term', 'step'"):
        mt.apply_if_finite(inner, K, 1, skip="never")
    with pytest.raises(TypeError, match="apply_if_finite: inner must be an optax"):
        mt.apply_if_finite(None, K, 1)
    tx = mt.apply_if_finite(optax.adam(0.1), K, 1)
    with pytest.raises(ValueError, match="inner must remove the term axis") as error:
        first_step(tx, at(draw(1), 0), PARAMS)
    assert_message(error.value, "apply_if_finite", "updates['b']", "sum_terms()")
