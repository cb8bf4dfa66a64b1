"""Terms that are absent from a step: it is the step of the smaller problem.

The contract holds for every exported weighting and its variants. The reference is the
same method on the terms present only, which is tested against its paper elsewhere.
"""

import functools
import itertools
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import (
    constant,
    dwa,
    equal,
    gradnorm,
    inexact_mgda,
    lbtw,
    pcgrad,
    softadapt,
)
from tests import _methods
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_same_signature,
    assert_zero,
    named_leaves,
)
from tests._params import some
from tests.references import pcgrad as pcgrad_reference
from tests.weightings import _steps

# No other axis of a state has as many entries as there are terms.
TERMS = 4

MASKS = np.array(
    [
        [1, 1, 0, 1],
        [1, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 0, 0],
        [1, 1, 0, 1],
        [0, 0, 1, 0],
        [1, 0, 1, 1],
        [0, 1, 1, 1],
        [1, 0, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 1, 1],
        [1, 1, 0, 1],
    ],
    dtype=bool,
)

FOUND = _methods.methods()

# Methods that draw random numbers, whose draws depend on K.
DRAWN = {name for name, one in FOUND.items() if one.drawn}

# Methods whose steps are taken outside jit, too.
EAGER = _methods.REPRESENTATIVE - {"cagrad", "compose"}

# The reading of the masks is the same for all variants of a method.
by_name = pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=[] if m in _methods.factories() else pytest.mark.slow)
        for m in FOUND
    ],
)


def made(method, at=tuple(range(TERMS))):
    """The method for the terms with the indices ``at``."""
    return FOUND[method].make(at)


def problem(steps, seed=0):
    """Gramians [steps, K, K] and positive losses [steps, K]."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(steps, TERMS, 9)) + 0.5 * rng.normal(size=9)
    rows *= np.exp(rng.normal(size=TERMS))[:, None]
    losses = np.exp(0.5 * rng.normal(size=(steps, TERMS)))
    return np.einsum("tip,tjp->tij", rows, rows), losses


def spoiled(method, gramian, losses, mask):
    """NaN wherever an absent term has a part."""
    pairs = mask[:, None] & mask[None, :]
    gramian = np.where(pairs, gramian, np.nan)
    return _steps.read(method, gramian, np.where(mask, losses, np.nan))


def entries(leaf, mask):
    """The part of a leaf that belongs to some terms; all of a leaf without terms."""
    leaf = np.asarray(leaf)
    for axis, size in enumerate(leaf.shape):
        if size == TERMS:
            leaf = np.compress(mask, leaf, axis=axis)
    return leaf


def part(method, state, mask, start):
    """The state of the smaller problem, which began with ``start``."""
    chosen = jax.tree.map(lambda leaf: entries(leaf, mask), state)
    # Weights in a state compare the terms; those of the smaller problem have its sum.
    for field in FOUND[method].relative:
        values, whole = getattr(chosen, field), np.sum(getattr(start, field))
        chosen = chosen._replace(**{field: values / (values.sum() / whole)})
    for field in FOUND[method].fixed:
        chosen = chosen._replace(**{field: getattr(start, field)})
    return chosen


def assert_absent_kept(after, before, mask):
    for (path, new), old in zip(
        named_leaves(after), jax.tree.leaves(before), strict=True
    ):
        if TERMS in np.shape(new):
            same = np.array_equal(entries(new, ~mask), entries(old, ~mask))
            assert same, f"{path}: {old} became {new} without {~mask}"


def assert_weights(method, found, expected):
    relative = functools.partial(_methods.relative, FOUND[method])
    assert_close(relative(found), relative(expected), rtol=1e-7)


def assert_weights_absent_zero(weights, mask):
    if weights.ndim == 2:
        assert_zero(weights[~mask])
        weights = weights.T
    assert_zero(weights[~mask])


@by_name
@pytest.mark.usefixtures("x64")
def test_a_step_is_that_of_the_smaller_problem(method):
    counted, update = _steps.update_of(method, TERMS)
    traced = counted.count
    state = _steps.start_of(method, TERMS)
    for gramian, losses, mask in zip(*problem(len(MASKS)), MASKS, strict=True):
        seen, heard = spoiled(method, gramian, losses, mask)
        weights, after = update(seen, state, losses=heard, present=mask)
        assert_weights_absent_zero(np.asarray(weights), mask)
        assert_absent_kept(after, state, mask)
        assert_finite((weights, after))
        assert_same_signature(after, state)
        if mask.any() and (mask[0] or not FOUND[method].ordered):
            at = np.flatnonzero(mask)
            start = _steps.start_of(method, at)
            seen, heard = _steps.read(method, gramian[np.ix_(at, at)], losses[at])
            expected, expected_after = _steps.update_of(method, at)[1](
                seen, part(method, state, mask, start), losses=heard
            )
            # The draw is another one; of a single term there is none.
            if method not in DRAWN or len(at) == 1:
                assert_weights(method, entries(weights, mask), expected)
            assert_close(part(method, after, mask, start), expected_after, rtol=1e-7)
        state = after
    assert counted.count - traced <= 1


@pytest.mark.slow  # the same programs, and a run of twelve steps says more
@pytest.mark.parametrize("method", [m for m in FOUND if m not in DRAWN])
@pytest.mark.usefixtures("x64")
def test_terms_that_are_never_there_might_as_well_not_exist(method):
    at = (0, 1, 3)
    state, small_state = (_steps.start_of(method, n) for n in (TERMS, at))
    mask = np.isin(np.arange(TERMS), at)
    for gramian, losses in zip(*problem(8, seed=1), strict=True):
        seen, heard = spoiled(method, gramian, losses, mask)
        weights, state = _steps.update_of(method, TERMS)[1](
            seen, state, losses=heard, present=mask
        )
        seen, heard = _steps.read(method, gramian[np.ix_(at, at)], losses[list(at)])
        expected, small_state = _steps.update_of(method, at)[1](
            seen, small_state, losses=heard
        )
        assert_weights(method, entries(weights, mask), expected)


# That the mask is read at all is told above, of every method. The operations of two
# solvers one by one cost more than all the others together; MGDA has one, too.
@pytest.mark.parametrize(
    "method",
    some(FOUND, EAGER),
)
@pytest.mark.usefixtures("x64")
def test_all_present_is_as_if_nothing_were_said(method):
    """Nor does jit change anything: it is the eager step that is told nothing."""
    state, full = made(method).init(TERMS), np.ones(TERMS, bool)
    eager, update = made(method).update, _steps.update_of(method, TERMS)[1]
    for step, (gramian, losses) in enumerate(zip(*problem(6, seed=2), strict=True)):
        seen, heard = _steps.read(method, gramian, losses)
        said = update(seen, state, losses=heard, present=full)
        # Eager steps of a solver are slow. The second of these begins with a state that
        # absent terms have left behind, and the last with one of several steps.
        if step in (0, 1, 5):
            unsaid = eager(seen, state, losses=heard)
            assert_close(said, unsaid, rtol=1e-10)
            assert_same_signature(said, unsaid)
        _, state = update(seen, state, losses=heard, present=MASKS[step])


@pytest.mark.parametrize(
    "method",
    some(["mgda", "pcgrad", "softadapt", "gradnorm"], {"mgda", "pcgrad", "softadapt"}),
)
@pytest.mark.usefixtures("x64")
def test_a_batch_of_masks(method):
    gramians, losses = problem(1, seed=3)
    seen, heard = _steps.read(method, gramians[0], losses[0])
    state, step = _steps.start_of(method, TERMS), _steps.update_of(method, TERMS)[1]
    batch = jax.vmap(lambda mask: step(seen, state, losses=heard, present=mask))
    batch = jax.tree.map(np.asarray, batch(MASKS[:5]))
    for i, mask in enumerate(MASKS[:5]):
        alone = step(seen, state, losses=heard, present=mask)
        assert_close(jax.tree.map(itemgetter(i), batch), alone, rtol=1e-9)


@by_name
def test_dtypes_are_those_without_absent_terms(method):
    weighting = made(method)
    state = jax.eval_shape(lambda: weighting.init(TERMS))
    given, losses = np.eye(TERMS, dtype=np.float32), np.ones(TERMS, np.float32)
    step = functools.partial(weighting.update, losses=losses)
    with_mask = jax.eval_shape(step, given, state, present=np.ones(TERMS, bool))
    assert_same_signature(with_mask, jax.eval_shape(step, given, state))


@pytest.mark.parametrize("name", _methods.factories())
@pytest.mark.usefixtures("own_errors")
def test_bad_masks_are_errors(name):
    weighting, state = made(name), _steps.start_of(name, TERMS)
    for present in (np.ones(TERMS), np.ones(3, bool), np.ones((TERMS, 1), bool)):
        with pytest.raises(ValueError, match="present must be an array") as error:
            weighting.update(
                np.eye(TERMS), state, losses=np.ones(TERMS), present=present
            )
        assert_message(error.value, f"{name}:", f"({TERMS},)", "found")


# What each method does with its own.


def masked_run(weighting, losses, masks, gramians=None):
    """Weights [steps, K] and the last state."""

    def step(state, data):
        loss, mask, gramian = data
        weights, state = weighting.update(gramian, state, losses=loss, present=mask)
        return state, weights

    data = jax.tree.map(jnp.asarray, (losses, masks, gramians))
    scan = jax.jit(lambda *data: jax.lax.scan(step, *data))
    state, weights = scan(weighting.init(losses.shape[1]), data)
    return np.asarray(weights), jax.tree.map(np.asarray, state)


def as_mask(*indices, terms=3):
    return np.isin(np.arange(terms), indices)


def test_fixed_weights():
    weights, _ = equal().update(None, equal().init(3), present=as_mask(0, 2))
    assert_identical(weights, np.float32([0.5, 0.0, 0.5]))
    weighting = constant([3.0, 2.0, 1.0])
    weights, _ = weighting.update(None, weighting.init(3), present=as_mask(0, 2))
    assert_identical(weights, np.float32([3.0, 0.0, 1.0]))


@pytest.mark.parametrize("terms", [2, TERMS])
@pytest.mark.usefixtures("x64")
def test_an_absent_gradient_is_not_the_zero_gradient_that_wins(terms):
    update, state = _steps.update_of("mgda", terms)[1], _steps.start_of("mgda", terms)
    lengths = np.arange(1.0, terms + 1)
    for absent in ([], [0]) if terms == 2 else ([], [0], [1], [0, 1], [0, 1, 2]):
        there = ~np.isin(np.arange(terms), absent)
        weights, after = update(np.diag(lengths**2), state, present=there)
        shares = np.where(there, lengths**-2, 0)
        assert_close(weights, shares / shares.sum(), rtol=1e-3)
        assert after.converged
    # But a zero gradient that is there does.
    there = np.arange(terms) != terms - 1
    weights, _ = update(np.diag(np.r_[0, lengths[1:]]), state, present=there)
    assert_identical(weights, np.eye(terms)[0])


@pytest.mark.usefixtures("x64")
def test_mgda_of_dependent_gradients_has_the_direction_of_the_smaller_problem(rng):
    rows = rng.normal(size=(TERMS, 2))  # three and more in a plane
    rows[3] = rows[1]
    gramian, state = rows @ rows.T, _steps.start_of("mgda", TERMS)
    for absent in range(TERMS):
        at = np.delete(np.arange(TERMS), absent)
        mask = np.arange(TERMS) != absent
        weights, _ = _steps.update_of("mgda", TERMS)[1](gramian, state, present=mask)
        expected, _ = _steps.update_of("mgda", at)[1](gramian[np.ix_(at, at)], state)
        assert_close(weights @ rows, expected @ rows[at], rtol=0, atol=1e-7)


def test_inexact_mgda_asks_the_terms_that_are_there():
    weighting = inexact_mgda(np.float32([0.5, 1e9]))
    update, state = jax.jit(weighting.update), weighting.init(2)
    weights, state = update(np.eye(2), state, present=as_mask(0, terms=2))
    assert bool(state.ready)
    assert_identical(weights, np.float32([1.0, 0.0]))
    weights, state = update(np.eye(2), state, present=as_mask(1, terms=2))
    assert not bool(state.ready)
    assert_zero(weights)
    # Nothing to descend: the step is skipped.
    weights, state = update(np.eye(2), state, present=as_mask(terms=2))
    assert not bool(state.ready)
    assert int(state.skipped) == 2


def test_pcgrad_draws_an_order_of_the_terms_that_are_there(rng):
    at, terms, draws = [0, 2, 3], 4, 60
    rows = rng.normal(size=(terms, 5))
    rows[2] = -rows[0] + 0.5 * rng.normal(size=5)
    rows[3] = -rows[0] - rows[2] + 0.5 * rng.normal(size=5)
    weighting = pcgrad(jax.random.key(0))
    gramian = np.float32(rows @ rows.T)
    masks = np.broadcast_to(as_mask(*at, terms=terms), (draws, terms))
    mixing, _ = masked_run(
        weighting, np.zeros((draws, terms)), masks, np.stack([gramian] * draws)
    )
    orders = list(itertools.permutations(range(3)))
    possible = [pcgrad_reference.surgery(rows[at], [order] * 3) for order in orders]
    seen = set()
    for matrix in mixing:
        assert_weights_absent_zero(matrix, np.isin(np.arange(terms), at))
        new = (matrix @ rows)[at]
        for term in range(3):
            gaps = [np.max(np.abs(new[term] - rows[term])) for rows in possible]
            assert min(gaps) < 1e-5
            seen.add((term, tuple(np.isclose(gaps, min(gaps), atol=1e-5))))
    # A term meets the two others in one order or in the other: both were drawn.
    assert len(seen) == 6


def test_pcgrad_of_two_terms_does_not_depend_on_the_draw():
    rows = np.array([[1.0, 0.0], [5.0, 7.0], [-1.0, 1.0]])
    weighting = pcgrad(jax.random.key(3))
    gramian = np.float32(rows @ rows.T)
    mixing, _ = jax.jit(weighting.update)(
        gramian, weighting.init(3), present=as_mask(0, 2)
    )
    assert_close(mixing, np.array([[1, 0, 0.5], [0, 0, 0], [1, 0, 1]]), rtol=1e-6)


def test_lbtw_and_dwa_count_the_steps_of_each_term():
    losses = np.array([[4.0, 9.0], [2.0, 8.0], [1.0, 2.0], [1.0, 1.0]])
    masks = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], dtype=bool)
    weights, state = masked_run(lbtw(1.0), losses, masks)
    # The second term's first loss is 8.
    expected = np.array([[1, 0], [0.5, 1], [0, 0.25], [0.25, 0.125]])
    assert_close(weights, expected, rtol=1e-6)
    assert_identical(state.first, np.float32([4.0, 8.0]))
    weights, state = masked_run(dwa(1.0), losses, masks)
    # In the last step the last two losses are 2, 4 and 2, 8.
    powers = np.exp([0.5, 0.25])
    expected = np.array([[1, 0], [1, 1], [0, 1], 2 * powers / powers.sum()])
    assert_close(weights, expected, rtol=1e-6)
    assert_identical(state.seen, np.array([3, 3]))


@pytest.mark.parametrize("sum_to", [1.0, "terms"])
@pytest.mark.parametrize("loss_weighted", [False, True])
def test_softadapt_weights_add_up_over_the_terms_that_are_there(loss_weighted, sum_to):
    weighting = softadapt(
        1.0, 2, update_every=3, sum_to=sum_to, loss_weighted=loss_weighted, eps=0.0
    )
    _, losses = problem(len(MASKS))
    weights, state = masked_run(weighting, losses, MASKS)
    counts = MASKS.sum(axis=1)
    expected = counts if sum_to == "terms" else counts > 0
    assert_close(weights.sum(axis=1), expected, rtol=1e-6)
    assert_close(state.held.sum(), np.sum(weighting.init(TERMS).held), rtol=1e-6)


def test_softadapt_gives_a_term_that_is_new_its_equal_share():
    losses = np.array([[3.0, 3.0, 3.0], [3.0, 2.0, 3.0], [3.0, 1.0, 9.0]])
    masks = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=bool)
    weights, _ = masked_run(softadapt(1.0, 2), losses, masks)
    pair = np.exp([0.0, -1.0]) / np.exp([0.0, -1.0]).sum()
    expected = np.array([[0.5, 0.5, 0], [*pair, 0], [*(pair * 2 / 3), 1 / 3]])
    assert_close(weights, expected, rtol=1e-6)


def test_softadapt_takes_differences_over_the_steps_of_each_term():
    # Losses that fall by one each time that the term is there: all rates are the same.
    masks = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=bool)
    losses = 10.0 - np.cumsum(masks, axis=0)
    weights, state = masked_run(softadapt(1.0, 2), losses, masks)
    assert_close(weights[-1], np.array([0.0, 0.5, 0.5]), rtol=1e-6)
    assert_identical(state.seen, masks.sum(axis=0))


def test_softadapt_forgets_a_loss_that_is_not_finite():
    _, losses = problem(9)
    losses[2, 0] = np.nan
    masks = np.ones((9, TERMS), dtype=bool)
    masks[:, 3] = False
    weights, state = masked_run(softadapt(1.0, 2, update_every=2), losses, masks)
    assert np.isnan(weights[3]).any()
    assert_finite(weights[5:])
    assert_close(state.held.sum(), np.ones([]), rtol=1e-6)


def test_gradnorm_keeps_the_share_of_present_against_absent_terms():
    gramians, losses = problem(12)
    weighting = gradnorm()
    _, state = masked_run(weighting, losses, np.ones_like(MASKS), gramians)
    before, mask = state.learned, as_mask(0, 2, terms=TERMS)
    weights, state = jax.jit(weighting.update)(
        np.float32(gramians[0]), state, losses=np.float32(losses[0]), present=mask
    )
    learned = np.asarray(state.learned)
    expected = np.where(mask, before, 0)
    assert_close(weights, 2 * expected / expected.sum(), rtol=1e-6)
    assert np.any(learned != before)
    assert_close(learned[mask].sum(), before[mask].sum(), rtol=1e-6)
    assert_identical(learned[~mask], before[~mask])
