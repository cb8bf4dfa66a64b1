"""Random chains on random trees: what every composition keeps to.

A chain has stages K -> K in any number and order, one aggregator, and Optax's stages
after it. For a longer run than the default, with chains that differ each time, set
``MULTITERM_OPTAX_EXAMPLES`` to the number of chains to try.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

import multiterm_optax as mt
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_param_shapes,
    assert_same_signature,
    assert_strong_types,
    assert_term_shapes,
    assert_zero,
)

MORE = int(os.environ.get("MULTITERM_OPTAX_EXAMPLES", "0"))
STEPS = 3


def examples(number):
    """Settings; to make a failing example smaller takes minutes, so only on demand."""
    phases = [phase for phase in Phase if MORE or phase is not Phase.shrink]
    return settings(max_examples=MORE or number, derandomize=not MORE, phases=phases)


# --- stages ----------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stage and its promises.

    ``make(order)`` builds it for K = len(order) terms, with all that it knows of single
    terms in this order.
    """

    name: str
    make: Callable
    # What becomes of the update when all gradients are multiplied by a power of two:
    # multiplied by its power 1 or 0, exactly; None: neither.
    degree: int | None = 1
    # What it is for one term.
    alone: Callable = optax.identity
    # Weights found from a gramian may jump where terms are left out of the hull or
    # belong to a small group, and are rounding where the direction vanishes.
    delicate: bool = False
    # Divides by what may be a rounding.
    sharp: bool = False
    # The terms' order matters: to what is drawn, or to which of them is the anchor.
    ordered: bool = False


def weights_in(order):
    """Weights of the terms; the first's is 1, as that of a term alone must be."""
    return np.array([1.0, 0.5, 2.0, 0.25, 3.0, 0.125])[order]


def reweight(name, weighting, **options):
    promises = {key: options.pop(key) for key in ("ordered",) if key in options}
    return Stage(
        f"reweight({name})",
        lambda order: mt.reweight(weighting(), len(order), **options),
        delicate=True,
        **promises,
    )


def per_term(name, inner, degree):
    return Stage(
        f"per_term({name})",
        lambda order: mt.per_term(inner(), len(order)),
        degree,
        inner,
    )


def plain(name, stage, degree):
    return Stage(name, lambda order: stage(), degree, stage)


def adam():
    return optax.scale_by_adam(0.8, 0.9, 1e-3)


KEEPING = [
    Stage(
        "balance_by_norm", lambda order: mt.balance_by_norm(len(order)), ordered=True
    ),
    Stage(
        "balance_by_norm(global, anchor)",
        lambda order: mt.balance_by_norm(
            len(order), 0.5, groups="global", anchor=order.index(0)
        ),
    ),
    Stage(
        "balance_by_norm(labels, weights)",
        lambda order: mt.balance_by_norm(
            len(order),
            anchor=order.index(0),
            groups=lambda params: jax.tree.map(lambda p: f"{p.ndim} axes", params),
            weights=weights_in(order),
        ),
    ),
    Stage(
        "reweight(constant)",
        lambda order: mt.reweight(mt.constant(weights_in(order)), len(order)),
    ),
    Stage("reweight(dwa)", lambda order: mt.reweight(mt.dwa(), len(order))),
    Stage("track_dominance", lambda order: mt.metrics.track_dominance(len(order), 0.5)),
    reweight("mgda", mt.mgda),
    reweight("mgda, by leaf", mt.mgda, groups="leaf"),
    reweight("upgrad", mt.upgrad),
    reweight("pcgrad", lambda: mt.pcgrad(jax.random.key(0)), ordered=True),
    per_term("trace", lambda: optax.trace(0.9), 1),
    per_term("adam", adam, None),
    per_term("clip_by_global_norm", lambda: optax.clip_by_global_norm(1.0), None),
    plain("scale", lambda: optax.scale(-2.0), 1),
    plain("clip", lambda: optax.clip(1.0), None),
]
AGGREGATORS = [
    Stage("sum_terms", lambda order: mt.sum_terms()),
    Stage("grad_drop", lambda order: mt.grad_drop(jax.random.key(1), leak=0.25)),
    Stage(
        "scale_by_max_adam",
        lambda order: mt.scale_by_max_adam(len(order), 0.8, 0.9, 1e-3),
        None,
        adam,
    ),
    Stage(
        "scale_by_max_adam(eps=0)",
        lambda order: mt.scale_by_max_adam(len(order), 0.8, 0.9, 0.0),
        0,
        sharp=True,
    ),
    Stage(
        "scale_by_max_adam(own)",
        lambda order: mt.scale_by_max_adam(len(order), 0.8, 0.9, 1e-3, reduction="own"),
        None,
        adam,
    ),
]
AFTER = [
    plain("trace", lambda: optax.trace(0.9, nesterov=True), 1),
    plain("adam", adam, None),
    plain("clip_by_global_norm", lambda: optax.clip_by_global_norm(0.5), None),
    plain("scale", lambda: optax.scale(-0.1), 1),
    plain("add_decayed_weights", lambda: optax.add_decayed_weights(0.1), None),
]


@dataclass(frozen=True)
class Chain:
    """Stages that keep the terms, the aggregator, and those behind."""

    before: tuple[Stage, ...]
    aggregator: Stage
    after: tuple[Stage, ...]

    def __repr__(self):
        return " > ".join(stage.name for stage in self.stages)

    @property
    def stages(self):
        return (*self.before, self.aggregator, *self.after)

    def keeping(self, order):
        """Its stages that keep the term axis, without the others."""
        return optax.chain(optax.identity(), *(one.make(order) for one in self.before))

    def make(self, order):
        return mt.chain(*(stage.make(order) for stage in self.stages))

    @property
    def degree(self):
        degree = 1
        for stage in self.stages:
            if degree == 1:
                degree = stage.degree
        return degree

    @property
    def comparable(self):
        """Whether a rounding stays one through all stages."""
        delicate = [stage.delicate for stage in self.before]
        last_only = not any(delicate[:-1])
        return last_only and not (any(delicate) and self.aggregator.sharp)


def chains(delicate=True, least=0):
    keeping = [stage for stage in KEEPING if delicate or not stage.delicate]
    return st.builds(
        Chain,
        st.lists(st.sampled_from(keeping), min_size=least, max_size=3).map(tuple),
        st.sampled_from(AGGREGATORS),
        st.lists(st.sampled_from(AFTER), max_size=2).map(tuple),
    )


# --- trees and gradients ------------------------------------------------------------

SHAPES = [(), (2,), (3, 2), (0,)]


def trees(dtypes):
    leaf = st.builds(
        lambda shape, dtype: np.ones(shape, jnp.dtype(dtype)),
        st.sampled_from(SHAPES),
        st.sampled_from(dtypes),
    )
    return st.recursive(
        st.one_of(leaf, st.none()),
        lambda inside: st.one_of(
            st.dictionaries(st.sampled_from("abc"), inside, max_size=3),
            st.lists(inside, max_size=3),
            st.tuples(inside, inside),
        ),
        max_leaves=5,
    )


def with_body(tree, dtype):
    """A tree that has more dimensions than there are terms."""
    return {"body": np.ones((3, 4), dtype), "rest": tree}


def gradients(params, terms, seed):
    """STEPS trees of gradients [K, *p]: of several sizes, some of them zero."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-2, 2, size=terms)
    sizes[rng.random(terms) < 0.1] = 0

    def draw(leaf):
        over = (sizes * (rng.random(terms) > 0.1)).reshape(-1, *(1,) * leaf.ndim)
        return np.asarray(over * rng.normal(size=(terms, *leaf.shape)), leaf.dtype)

    return [jax.tree.map(draw, params) for _ in range(STEPS)]


def losses_of(terms, seed):
    losses = np.random.default_rng(seed).uniform(0.5, 2, size=terms)
    return losses.astype(jnp.result_type(float))


def run(update, state, params, history, losses, **extra):
    """The updates of all steps, in NumPy, and the last state."""
    found = []
    for updates in history:
        stepped, state = update(updates, state, params, losses=losses, **extra)
        found.append(jax.tree.map(np.asarray, stepped))
    return found, state


# --- properties ----------------------------------------------------------------------


@examples(10)
@given(
    chain=chains(),
    tree=trees(["float32", "bfloat16", "float16"]),
    terms=st.integers(1, 6),
    masked=st.booleans(),
    with_params=st.booleans(),
)
def test_shapes_dtypes_and_states(chain, tree, terms, masked, with_params):
    decays = any(stage.name == "add_decayed_weights" for stage in chain.after)
    params = tree if with_params or decays else None
    order = list(range(terms))
    updates = jax.tree.map(lambda p: np.ones((terms, *p.shape), p.dtype), tree)
    extra = {"losses": np.ones(terms, np.float32)}
    if masked:
        extra["present"] = np.ones(terms, bool)

    def step(tx):
        start = jax.tree.map(jnp.asarray, tx.init(tree))
        assert_strong_types(start)

        def update(updates, state, extra):
            return tx.update(updates, state, params, **extra)

        found, state = jax.eval_shape(update, updates, start, extra)
        assert_same_signature(state, start)
        return found

    assert_term_shapes(step(chain.keeping(order)), tree, terms)
    assert_param_shapes(step(chain.make(order)), tree)


@examples(4)
@given(
    chain=chains(),
    tree=trees(["float64"]),
    terms=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_numbers(chain, tree, terms, seed, data):
    event(f"comparable: {chain.comparable}")
    with jax.enable_x64(True):
        order = list(range(terms))
        params = with_body(tree, float)
        history, losses = gradients(params, terms, seed), losses_of(terms, seed)
        tx = chain.make(order)
        update, start = jax.jit(tx.update), tx.init(params)
        found, state = run(update, start, params, history, losses)
        assert_finite(found)
        assert_finite(state)
        if chain.degree is not None:
            power = data.draw(st.integers(-20, 20), label="power of two")
            factor = 2.0**power
            scaled = jax.tree.map(lambda g: g * factor, history)
            again, _ = run(update, start, params, scaled, losses)
            factor = factor**chain.degree
            assert_identical(again, jax.tree.map(lambda u: u * factor, found))
        if not chain.comparable:
            return
        # Programs that add up in another order differ by roundings.
        there = np.ones(terms, bool)
        masked, _ = run(update, start, params, history, losses, present=there)
        assert_close(masked, found, rtol=1e-7, atol=1e-9)
        if not any(stage.ordered for stage in chain.stages):
            order = data.draw(st.permutations(order), label="order")
            permuted = chain.make(order)
            picked = np.asarray(order)
            other = jax.tree.map(lambda g: g[picked], history)
            again, _ = run(
                jax.jit(permuted.update),
                permuted.init(params),
                params,
                other,
                losses[picked],
            )
            assert_close(again, found, rtol=1e-7, atol=1e-9)


# Each operation is a program: by default tests/test_contract.py has this of one chain.
@pytest.mark.slow
@examples(3)
@given(chain=chains(delicate=False), terms=st.integers(1, 3))
def test_eager_is_jitted(chain, terms):
    with jax.enable_x64(True):
        # Leaves of one shape: outside jit each shape has programs of its own.
        params = {"w": np.ones((2, 2)), "b": (np.ones((2, 2)), None)}
        tx = chain.make(list(range(terms)))
        args = params, gradients(params, terms, 0), losses_of(terms, 0)
        args = jax.tree.map(jnp.asarray, args)
        eager, eager_state = run(tx.update, tx.init(params), *args)
        jitted, jitted_state = run(jax.jit(tx.update), tx.init(params), *args)
        assert_close(eager, jitted, rtol=1e-9)
        assert_close(eager_state, jitted_state, rtol=1e-9)


@examples(4)
@given(chain=chains(least=1), terms=st.integers(2, 4), silent=st.integers(0, 3))
def test_a_zero_gradient_stays_zero_to_the_aggregator(chain, terms, silent):
    silent %= terms
    params = {"w": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}
    updates = gradients(params, terms, 0)[0]
    for leaf in updates.values():
        leaf[silent] = 0
    tx, losses = chain.keeping(list(range(terms))), losses_of(terms, 0)
    found, _ = jax.jit(tx.update)(updates, tx.init(params), params, losses=losses)
    assert_finite(found)
    assert_zero(jax.tree.map(lambda u: np.asarray(u)[silent], found))


@examples(5)
@given(chain=chains(), tree=trees(["float64"]), seed=st.integers(0, 2**16))
def test_one_term_is_what_optax_makes_of_it(chain, tree, seed):
    if chain.aggregator.sharp:
        return  # where Optax divides zero by zero
    with jax.enable_x64(True):
        params = tree
        history, losses = gradients(params, 1, seed), losses_of(1, seed)
        tx = chain.make([0])
        ordinary = optax.with_extra_args_support(
            optax.chain(*(stage.alone() for stage in chain.stages))
        )
        found, _ = run(jax.jit(tx.update), tx.init(params), params, history, losses)
        summed = [jax.tree.map(lambda g: g[0], updates) for updates in history]
        expected, _ = run(
            jax.jit(ordinary.update), ordinary.init(params), params, summed, losses
        )
        assert_close(found, expected, rtol=1e-9, atol=1e-300)
