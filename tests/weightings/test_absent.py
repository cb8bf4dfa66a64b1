"""Terms that are absent from a step: it is the step of the smaller problem.

The contract holds for every exported weighting and its variants. The reference is the
same method on the terms present only, which is tested against its paper elsewhere.
"""

import functools
from operator import itemgetter

import jax
import numpy as np
import pytest

from tests import _methods
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_message,
    assert_same_signature,
    named_leaves,
)
from tests._params import some
from tests.weightings import _steps
from tests.weightings._absent import (
    MASKS,
    TERMS,
    assert_weights_absent_zero,
    problem,
)

FOUND = _methods.methods()

# Methods that draw random numbers, whose draws depend on K.
DRAWN = {name for name, one in FOUND.items() if one.drawn}

# Methods whose steps are taken outside jit, too.
EAGER = _methods.REPRESENTATIVE - {"cagrad", "compose", "mgda"}

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


# That the mask is read at all is told above, of every method. The operations of three
# solvers one by one cost more than all the others together.
@pytest.mark.parametrize("method", some(FOUND, EAGER))
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
