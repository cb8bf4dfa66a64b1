"""MGDA by leaf, by label and over all, on each group's own vectors."""

import functools

import numpy as np
import pytest

from multiterm_optax import mgda
from tests._asserts import assert_close
from tests.references.min_norm import min_norm_point
from tests.weightings import _groups


@functools.cache
def directions(grouping):
    return _groups.summed(_groups.run(mgda(), grouping))


@pytest.mark.parametrize("groups", _groups.GROUPINGS)
def test_mgda_finds_each_groups_own_direction(x64, groups):
    def share(t, J):
        return np.tile(min_norm_point(J)[0] / len(J), (len(J), 1))

    expected = _groups.summed(_groups.expected(share, groups))
    assert_close(directions(groups), expected, rtol=1e-9)


@pytest.mark.parametrize("groups", ["leaf", "labels"])
def test_groups_make_a_difference(x64, groups):
    apart, whole = directions(groups)["a"], directions("global")["a"]
    assert np.max(np.abs(apart - whole)) > 0.01
