"""NaN and infinity in one element of one term."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests import _methods
from tests.bad_input._step import (
    K,
    mtadam,
)

# The library's own messages, as a user without a type checker sees them.
pytestmark = pytest.mark.usefixtures("own_errors")


SPOILT = {"a": (K, 3), "b": (K, 2)}
ROOM = {"a": jnp.zeros(3), "b": jnp.zeros(2)}


def spoilt(value):
    rng = np.random.default_rng(0)
    out = {name: rng.normal(size=shape) for name, shape in SPOILT.items()}
    out["a"][0, 1] = value
    return jax.tree.map(np.float32, out)


def where_not_finite(tree):
    return {name: np.argwhere(~np.isfinite(x)).tolist() for name, x in tree.items()}


def run_spoilt(tx, *values):
    """Where the update is not finite, in a step for each of the values, one by one."""
    losses, update = np.ones(K, np.float32), jax.jit(tx.update)
    state, found = tx.init(ROOM), []
    for value in values:
        updates, state = update(spoilt(value), state, ROOM, losses=losses)
        found.append(where_not_finite(updates))
    return found


ELEMENT, TERM_ELEMENT = {"a": [[1]], "b": []}, {"a": [[0, 1]], "b": []}
CLEAN = {"a": [], "b": []}

# Stage: where it is not finite in the step itself, and in the next.
STAYS_APART = {
    "sum_terms": (mt.sum_terms, ELEMENT, CLEAN),
    "scale_by_max_adam": (lambda: mt.scale_by_max_adam(K), ELEMENT, ELEMENT),
    "own": (lambda: mt.scale_by_max_adam(K, reduction="own"), ELEMENT, ELEMENT),
    "grad_drop": (lambda: mt.grad_drop(jax.random.key(0)), ELEMENT, CLEAN),
    "balance_by_norm": (lambda: mt.balance_by_norm(K), TERM_ELEMENT, CLEAN),
    "per_term": (
        lambda: mt.per_term(optax.scale_by_adam(), K),
        TERM_ELEMENT,
        TERM_ELEMENT,
    ),
    "reweight, losses": (lambda: mt.reweight(mt.dwa(), K), TERM_ELEMENT, CLEAN),
    "mtadam": (mtadam, ELEMENT, ELEMENT),
    "metabalance": (lambda: mt.metabalance(optax.sgd(0.1), K), ELEMENT, CLEAN),
    "ladatask": (lambda: mt.ladatask_rmsprop(0.1, K), ELEMENT, ELEMENT),
    "apply_if_finite": (
        lambda: mt.apply_if_finite(mt.scale_by_max_adam(K), K, 5),
        CLEAN,
        CLEAN,
    ),
}


@pytest.mark.parametrize("stage", STAYS_APART)
def test_one_element_that_is_not_finite(stage):
    build, now, then = STAYS_APART[stage]
    tx = build()
    assert run_spoilt(tx, np.nan, 1.0) == [now, then]
    # Divided by itself or by a norm, infinity may leave as a zero.
    (found,) = run_spoilt(tx, np.inf)
    for name, places in found.items():
        assert all(place in now[name] for place in places), found


@pytest.mark.parametrize("method", ["mgda", "pcgrad"])
def test_a_gramian_keeps_what_is_not_finite_in_its_group(method):
    (by_leaf,) = run_spoilt(mt.reweight(_methods.build(method, K), K, "leaf"), np.nan)
    assert by_leaf["b"] == []
    assert [0, 1] in by_leaf["a"]


def test_a_gramian_of_all_leaves_is_kept_finite():
    whole = mt.chain(mt.reweight(mt.mgda(), K), mt.sum_terms())
    kept = mt.apply_if_finite(whole, K, 5)
    assert run_spoilt(kept, np.nan) == [CLEAN]
