"""chain: an optax.chain that refuses a chain without exactly one aggregator."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import (
    CountedTraces,
    assert_identical,
    assert_message,
    assert_param_shapes,
    assert_same_signature,
    assert_same_structure,
    assert_single_trace,
)

K = 2
SHAPES = {"a": (3,), "w": (2, 2), "s": ()}
PARAMS = {name: jnp.asarray(np.ones(s, np.float32)) for name, s in SHAPES.items()}


def draw():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=(K, *p.shape)), jnp.float32), PARAMS
    )


def trace(tx, grads, params, given=True):
    """Traces the first step: what is refused is refused for shapes."""
    state = jax.eval_shape(tx.init, params)
    return jax.eval_shape(tx.update, grads, state, params if given else None)


def balance():
    return mt.balance_by_norm(K)


SOUND = {
    "balance, sum, adam": lambda: (balance(), mt.sum_terms(), optax.adam(0.1)),
    "aggregator alone": lambda: (mt.scale_by_max_adam(K),),
    "aggregator last": lambda: (optax.scale(2.0), balance(), mt.sum_terms()),
    "a whole optimizer": lambda: (mt.mtadam(0.1, K), optax.clip(0.5)),
    "per_term": lambda: (mt.per_term(optax.adam(0.1), K), mt.sum_terms()),
    "nested K -> K": lambda: (
        optax.chain(balance(), optax.clip(1.0)),
        mt.reweight(mt.softadapt(), K),
        mt.sum_terms(),
        optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1)),
        optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.0, 5)),
    ),
    "nested chain": lambda: (
        balance(),
        mt.chain(optax.clip(1.0), mt.sum_terms()),
        optax.sgd(0.1),
    ),
    "masked K -> K": lambda: (
        optax.masked(balance(), {"a": True, "w": False, "s": True}),
        mt.sum_terms(),
    ),
    "measurements": lambda: (
        optax.monitor({"norms": mt.metrics.norms}),
        balance(),
        optax.snapshot("norm", optax.tree.norm),
        mt.sum_terms(),
    ),
    "an aggregator of the user's own": lambda: (
        optax.stateless(lambda u, _: jax.tree.map(lambda x: x.max(axis=0), u)),
        optax.adam(0.1),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_is_the_program_of_optax_chain(name):
    seen = []
    for tx in (mt.chain(*SOUND[name]()), optax.chain(*SOUND[name]())):
        first, state = jax.make_jaxpr(tx.init, return_shape=True)(PARAMS)
        update = jax.make_jaxpr(tx.update, return_shape=True)
        losses = np.float32([1, 2])
        step, (updates, after) = update(draw(), state, PARAMS, losses=losses)
        assert_param_shapes(updates, PARAMS)
        constants = jax.tree.map(np.asarray, (first.consts, step.consts))
        seen.append((f"{first}{step}", constants, (state, after)))
    (ours, constants, states), (plain, others, expected) = seen
    assert ours == plain
    assert_identical(constants, others)
    assert_same_signature(states, expected)


def test_adds_no_trace():
    tx = mt.chain(balance(), mt.sum_terms(), optax.adam(0.1))
    counted = CountedTraces(tx.update)
    update, state = jax.jit(counted), jax.eval_shape(tx.init, PARAMS)
    for _ in range(3):
        _, state = update.eval_shape(draw(), state, PARAMS)
    assert_single_trace(counted)


def test_works_in_a_scan_and_in_a_cond():
    tx = mt.chain(balance(), mt.sum_terms(), optax.adam(0.1))

    def step(state, go):
        def take(state):
            return tx.update(draw(), state, PARAMS)

        def leave(state):
            return jax.tree.map(jnp.zeros_like, PARAMS), state

        updates, state = jax.lax.cond(go, take, leave, state)
        return state, updates["a"]

    @jax.jit
    def run():
        state, _ = jax.lax.scan(step, tx.init(PARAMS), np.array([True, False, True]))
        return optax.tree.get(state, "count")

    assert int(run()) == 2


ORDINARY = {
    "adam": lambda: optax.adam(0.1),
    "trace": lambda: optax.trace(0.9),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "ema": lambda: optax.ema(0.9),
    "masked adam": lambda: optax.masked(
        optax.adam(0.1), {"a": False, "w": True, "s": False}
    ),
    "partition": lambda: optax.partition(
        {"x": optax.adam(0.1), "y": optax.sgd(0.1)}, {"a": "x", "w": "x", "s": "y"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(0.1),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_stage_before_the_aggregator_is_refused(name):
    for after in ((), (mt.sum_terms(),)):
        tx = mt.chain(balance(), ORDINARY[name](), *after)
        for given in (True, False):
            with pytest.raises(ValueError, match="term axis") as error:
                trace(tx, draw(), PARAMS, given)
            assert_message(error.value, "chain: stages[1] (optax.", "sum_terms()")
            assert_message(error.value, "was initialised for updates without")
    # What it saves from: nothing is said, and the shapes grow.
    plain = optax.chain(balance(), ORDINARY[name]())
    updates, _ = trace(plain, draw(), PARAMS)
    assert updates["w"].shape == (K, 2, 2)


@pytest.mark.parametrize(
    "stage",
    [
        lambda: optax.flatten(optax.adam(0.1)),
        lambda: optax.apply_if_finite(optax.adam(0.1), 3),
        lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    ],
)
def test_an_ordinary_stage_that_fails_by_itself_gets_a_note(stage):
    tx = mt.chain(balance(), stage(), mt.sum_terms())
    with pytest.raises((TypeError, ValueError)) as error:
        trace(tx, draw(), PARAMS)
    text = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert "stages[1] (optax." in text
    assert "aggregator" in text


def test_errors_of_our_own_stages_come_as_they_are():
    tx = mt.chain(mt.reweight(mt.softadapt(), K), mt.sum_terms())
    with pytest.raises(ValueError, match="pass the extra argument losses") as error:
        trace(tx, draw(), PARAMS)
    assert not any("stages[" in note for note in getattr(error.value, "__notes__", []))


@pytest.mark.parametrize(
    ("stages", "place"),
    [
        (lambda: (balance(), optax.sgd(0.1)), "after stages[0] (multiterm_optax.bal"),
        (lambda: (balance(),), "after stages[0] (multiterm_optax.balance_by_norm)"),
        (
            lambda: (optax.clip(1.0), mt.per_term(optax.adam(0.1), K), optax.scale(-1)),
            "after stages[1] (multiterm_optax.per_term)",
        ),
        (lambda: (optax.sgd(0.1),), "before stages[0] (optax."),
    ],
)
@pytest.mark.parametrize("with_params", [True, False])
def test_a_forgotten_aggregator_is_refused(stages, place, with_params):
    tx = mt.chain(*stages())
    with pytest.raises(ValueError, match="no stage removes the term axis") as error:
        trace(tx, draw(), PARAMS, with_params)
    assert_message(
        error.value, "updates['a']", "(2, 3)", "(3,)", "scale_by_max_adam", place
    )


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("with_params", [True, False])
def test_two_aggregators_are_refused(with_params):
    params = {"w": np.ones((2, 2), np.float32), "a": np.ones(2, np.float32)}
    grads = jax.tree.map(lambda p: np.stack([p] * K), params)
    for second in (
        mt.sum_terms(),
        mt.scale_by_max_adam(K),
        mt.grad_drop(jax.random.key(0)),
    ):
        tx = mt.chain(balance(), mt.sum_terms(), optax.clip(1.0), second)
        with pytest.raises(ValueError, match="only one aggregator") as error:
            trace(tx, grads, params, with_params)
        # With them, or with a state of their shapes, the stage itself has known.
        if not with_params and "state" not in str(error.value):
            assert_message(
                error.value, "chain: stages[3]", "stages[1] (multiterm_optax.sum_terms)"
            )


@pytest.mark.usefixtures("own_errors")
def test_stages_that_keep_the_term_axis_are_refused_after_the_aggregator():
    # Two rows, like two terms: nothing but the place of the stage tells them apart.
    params = {"w": np.ones((2, 2), np.float32)}
    grads = {"w": np.stack([params["w"]] * K)}
    for late in (mt.per_term(optax.adam(0.1), K), balance()):
        tx = mt.chain(mt.sum_terms(), late)
        for given in (True, False):
            with pytest.raises(ValueError, match="only one aggregator"):
                trace(tx, grads, params, given)


def test_leaves_that_keep_the_term_axis_are_refused():
    # Optax's masked lets pass what it leaves out, term axis and all.
    mask = {"a": True, "w": False, "s": True}
    tx = mt.chain(optax.masked(mt.sum_terms(), mask), optax.adam(0.1))
    with pytest.raises(ValueError, match="removes the term axis from") as error:
        trace(tx, draw(), PARAMS)
    assert_message(
        error.value,
        "stages[0] (optax.masked)",
        "updates['a'] but not from updates['w']",
        "(2, 2, 2)",
        "multiterm_optax.masked",
    )


def test_updates_without_a_term_axis_are_refused():
    tx = mt.chain(balance(), mt.sum_terms(), optax.adam(0.1))
    with pytest.raises(ValueError, match="term axis"):
        trace(tx, PARAMS, PARAMS, given=False)
    with pytest.raises(ValueError, match="the term axis is missing"):
        trace(tx, PARAMS, PARAMS)


def test_other_changes_of_shape_or_structure_are_refused():
    grow = optax.stateless(lambda u, _: jax.tree.map(lambda x: x[None], u))
    rename = optax.stateless(lambda u, _: list(u.values()))
    for stages, words in (
        ((grow, mt.sum_terms()), "turns updates['a'] of shape (2, 3) into shape (1, 2"),
        ((mt.sum_terms(), grow), "and returns shape (1, 3)"),
        ((rename, mt.sum_terms()), "must keep the tree structure"),
        ((mt.sum_terms(), rename), "must keep the tree structure"),
    ):
        tx = mt.chain(*stages)
        with pytest.raises(ValueError, match="chain: stages") as error:
            trace(tx, draw(), PARAMS)
        assert_message(error.value, words)


def test_frozen_parameters_and_none_leaves():
    params = {"w": np.ones(2, np.float32), "none": None}
    tx = mt.chain(balance(), mt.sum_terms(), optax.adam(0.1))
    grads = {"w": np.ones((K, 2), np.float32), "none": None}
    updates, _ = trace(tx, grads, params)
    assert_same_structure(updates, params)
    nothing = {"none": None}
    updates, _ = trace(tx, nothing, nothing)
    assert_same_structure(updates, nothing)


@pytest.mark.usefixtures("own_errors")
def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="stages must hold at least an aggregator"):
        mt.chain()
    with pytest.raises(TypeError, match=r"chain: stages\[1\] must be an optax"):
        mt.chain(balance(), mt.sum_terms)
    tx = mt.chain(balance(), mt.sum_terms())
    with pytest.raises(ValueError, match="state must be a tuple of 2 states"):
        tx.update(draw(), tx.init(PARAMS)[:1], PARAMS)
