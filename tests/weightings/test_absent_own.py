"""What each weighting does with its own statistics of terms that are absent."""

import itertools

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
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_zero,
)
from tests.references import pcgrad as pcgrad_reference
from tests.weightings import _steps
from tests.weightings._absent import (
    MASKS,
    TERMS,
    assert_weights_absent_zero,
    problem,
)


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
