"""Names say which number belongs to which term, whatever order they are written in."""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests import _factories, _methods
from tests._asserts import assert_close, assert_identical, assert_message

K = 3
# Written in an order that is not the alphabet's, in which the terms are.
LOSSES = {"res": 0.5, "ics": 2.0, "bcs": 1.0}
ORDER = ("bcs", "ics", "res")
GRADS = {"w": jnp.array([[5.0, -1.0], [1.0, -2.0], [1.0, 2.0]]), "b": jnp.arange(3.0)}
PARAMS = {"w": np.float32([5.0, -1.0]), "b": np.float32(0.0)}

# Arguments that take one value for each term, and such values by name.
NUMBERS = {"res": 0.9, "ics": 0.2, "bcs": 0.5}
BY_TERM = {"weights": NUMBERS, "preference": NUMBERS, "leak": NUMBERS}
ONLY_IN = {  # where other factories mean something else by this name
    "inexact_mgda.eps": {"res": 0.0, "ics": 0.0, "bcs": 2.3},
    "uncertainty.likelihood": dict(
        zip(LOSSES, ["classification", "regression", "regression"], strict=True)
    ),
}
OPTIONS = {"scale_by_max_adam": {"reduction": "own"}}


class Given(NamedTuple):
    """A factory's argument for each term."""

    factory: str
    argument: str
    values: dict


def found():
    """All arguments of exported factories that take one value for each term."""
    makers = {name: one.factory for name, one in _methods.factories().items()}
    makers |= {one.name: one.function for one in _factories.factories()}
    for name, maker in makers.items():
        for argument in inspect.signature(maker).parameters:
            values = ONLY_IN.get(f"{name}.{argument}", BY_TERM.get(argument))
            if values is not None:
                yield Given(name, argument, values)


GIVEN = list(found())
each_argument = pytest.mark.parametrize("given", GIVEN, ids=lambda g: ".".join(g[:2]))


def make(name, **options):
    """The transformation of a factory; weightings as a stage."""
    options |= OPTIONS.get(name, {})
    if name in _methods.factories():
        return mt.reweight(_methods.build(name, K, **options), K)
    (factory,) = (one for one in _factories.factories() if one.name == name)
    return factory.build(**options)


def in_order(values):
    ordered = [values[name] for name in ORDER]
    return ordered if isinstance(ordered[0], str) else np.array(ordered)


def step(tx, **extra):
    return tx.update(GRADS, tx.init(PARAMS), PARAMS, **{"losses": LOSSES, **extra})


def program(call):
    """A traced program as text, and the numbers that stand in it."""
    traced = jax.make_jaxpr(call)()
    return str(traced), [np.asarray(const).tolist() for const in traced.consts]


def refused(error, call):
    with pytest.raises(error) as caught:
        jax.eval_shape(call)
    return caught.value


def test_they_are_found():
    names = {(one.factory, one.argument) for one in GIVEN}
    known = {
        *((name, "weights") for name in ("constant", "by_norm", "balance_by_norm")),
        *((name, "weights") for name in ("mtadam", "adatask", "adatask_adam")),
        *((name, "weights") for name in ("adatask_rmsprop", "adatask_adagrad")),
        *((name, "preference") for name in ("upgrad", "dual_proj")),
        ("scale_by_max_adam", "weights"),
        ("inexact_mgda", "eps"),
        ("uncertainty", "likelihood"),
        ("grad_drop", "leak"),
    }
    assert known <= names


@each_argument
def test_a_dict_in_any_order_is_the_array_in_the_order_of_the_terms(given):
    def traced(values):
        tx = make(given.factory, **{given.argument: values})
        return program(lambda: step(tx))

    by_place = traced(in_order(given.values))
    assert traced(given.values) == by_place
    # The order matters: written down as it comes, it is another step.
    assert traced(list(given.values.values())) != by_place


@each_argument
def test_a_dict_of_traced_numbers_passes(given):
    if isinstance(given.values["res"], str):
        return
    traced = jax.tree.map(jnp.float32, given.values)
    jax.eval_shape(
        lambda values: step(make(given.factory, **{given.argument: values})), traced
    )


@each_argument
def test_another_structure_than_that_of_the_losses_is_refused(own_errors, given):
    misspelt = {{"ics": "ic"}.get(key, key): v for key, v in given.values.items()}
    tx = make(given.factory, **{given.argument: misspelt})
    error = refused(ValueError, lambda: step(tx))
    assert_message(error, f"{given.factory}: {given.argument}", "'ics': *", "'ic': *")
    tx = make(given.factory, **{given.argument: given.values})
    error = refused(ValueError, lambda: step(tx, losses=list(LOSSES.values())))
    assert_message(error, f"{given.factory}: {given.argument}", "[*, *, *]", "'ics': *")
    error = refused(ValueError, lambda: step(tx, losses=jnp.ones(K)))
    assert_message(error, f"{given.factory}: {given.argument}", "without names")


@each_argument
def test_another_number_is_refused_with_the_names(own_errors, given):
    fewer = {key: given.values[key] for key in ("res", "ics")}
    error = refused(
        ValueError, lambda: step(make(given.factory, **{given.argument: fewer}))
    )
    assert_message(error, f"{given.factory}: {given.argument}", "ics", "res")


@pytest.mark.parametrize(
    "name", ["by_norm", "balance_by_norm", "mtadam", "metabalance"]
)
def test_an_anchor_is_named(own_errors, name):
    for term in ("res", "ics"):
        named, placed = make(name, anchor=term), make(name, anchor=ORDER.index(term))
        assert program(lambda tx=named: step(tx)) == program(lambda tx=placed: step(tx))
    error = refused(ValueError, lambda: step(named, losses=None))
    assert_message(error, f"{name}: anchor='ics'", "losses=losses", "found no losses")
    error = refused(ValueError, lambda: step(named, losses=jnp.ones(K)))
    assert_message(error, f"{name}: anchor='ics'", "index", "without names")
    error = refused(ValueError, lambda: step(make(name, anchor="ic")))
    assert_message(error, f"{name}: anchor", "bcs, ics, res", "'ic'")


PRESENT = {"res": True, "ics": False, "bcs": True}


@pytest.mark.parametrize("name", ["sum_terms", "mtadam", "weighted", "multi_steps"])
def test_present_terms_are_named(own_errors, name):
    tx, mask = make(name), np.array([PRESENT[term] for term in ORDER])
    both = jax.jit(lambda: (step(tx, present=PRESENT), step(tx, present=mask)))
    assert_identical(*both())
    error = refused(ValueError, lambda: step(tx, present={"res": True}))
    assert_message(error, f"{name}: present", "'ics': *", "found {'res': *}")
    error = refused(ValueError, lambda: step(tx, present=mask[:2]))
    assert_message(error, f"{name}: present", "(in the order bcs, ics, res)", "(2,)")


def losses_fn(x):
    return {"res": x[0] ** 2, "ics": (x[1] - 1) ** 2, "bcs": x[0] * x[1]}


X = jnp.array([3.0, 1.5])


@pytest.mark.parametrize("every", [1, 2])
def test_weighted_grad_names_its_terms(own_errors, every):
    def run(weighting, present, fn=losses_fn):
        grad = mt.value_and_weighted_grad(fn, weighting, every=every)
        return grad.update(grad.init(K), X, present=present)

    by_name = mt.by_norm(anchor="res", weights=NUMBERS)
    by_place = mt.by_norm(anchor=2, weights=in_order(NUMBERS))
    mask = [PRESENT[term] for term in ORDER]
    assert_identical(*jax.jit(lambda: (run(by_name, PRESENT), run(by_place, mask)))())
    error = refused(ValueError, lambda: run(mt.constant({**NUMBERS, "x": 1.0}), None))
    assert_message(error, "constant: weights", "(4,)", "(bcs, ics, res, x)")

    def one_less(x):
        return {key: losses_fn(x)[key] for key in ("res", "ics")}

    error = refused(ValueError, lambda: run(mt.mgda(), None, one_less))
    assert_message(error, "value_and_weighted_grad: losses_fn", "found 2 (ics, res)")
    error = refused(ValueError, lambda: run(mt.mgda(), {"res": True}))
    assert_message(error, "value_and_weighted_grad: present", "'ics': *")


@pytest.mark.parametrize("around", ["compose", "frozen", "weighted", "jit"])
def test_names_reach_what_lies_within(around):
    def make_step(anchor):
        weighting = mt.by_norm(anchor=anchor)
        if around == "compose":
            weighting = mt.compose(mt.constant(NUMBERS), weighting)
        elif around == "frozen":
            weighting = mt.frozen(weighting, 3)
        elif around == "jit":  # traced once for each structure of the losses
            update = jax.jit(weighting.update)
            weighting = weighting._replace(update=update)
        if around == "weighted":
            return mt.apply_if_finite(
                mt.multi_steps(mt.weighted(weighting, optax.sgd(0.1), K), K, 1), K, 2
            )
        return mt.reweight(weighting, K)

    other = {"res": 1.0, "x": 1.0, "y": 1.0}

    def steps(tx, other_tx):
        found = [step(tx)]
        if around in ("jit", "frozen"):
            found.append(step(other_tx, losses=other))
        return found

    named, second, first = map(make_step, ("res", 2, 0))
    assert_identical(*jax.jit(lambda: (steps(named, named), steps(second, first)))())


def test_preferences_by_name_may_be_mapped():
    shares = jax.tree.map(lambda x: np.float32([x, 2 * x]), NUMBERS)

    def direction(preference):
        weighting = mt.upgrad(preference)
        return weighting.update(jnp.eye(K), weighting.init(K), losses=LOSSES)[0]

    assert jax.eval_shape(jax.vmap(direction), shares).shape == (2, K)


def test_weights_may_be_injected():
    build = optax.inject_hyperparams(mt.adatask_adam, static_args=("num_terms",))
    made = [build(0.1, K, weights=w) for w in (NUMBERS, in_order(NUMBERS))]
    found = [jax.jit(lambda tx=tx: step(tx)[0])() for tx in made]
    assert_close(*found, rtol=1e-6)


def test_nested_names_are_joined():
    losses = {"pde": {"res": 0.5, "ics": 2.0}, "data": 1.0}
    weights = {"data": 0.5, "pde": {"ics": 0.2, "res": 0.9}}
    weighting = mt.by_norm(anchor="pde/res", weights=weights)
    same = mt.by_norm(anchor=2, weights=[0.5, 0.2, 0.9])

    def weights(weighting):
        norms = jnp.array([1.0, 4.0, 9.0])
        return weighting.update(norms, weighting.init(K), losses=losses)

    assert_identical(*jax.jit(lambda: (weights(weighting), weights(same)))())


class Pair(NamedTuple):
    """Losses that are neither a dict nor sorted."""

    second: float
    first: float


def test_other_trees_keep_their_own_order():
    weighting = mt.constant(Pair(second=1.0, first=2.0))
    losses = Pair(0.5, 0.1)
    found = weighting.update(None, weighting.init(2), losses=losses)[0]
    assert found.tolist() == [1.0, 2.0]
    error = refused(
        ValueError,
        lambda: weighting.update(
            None, weighting.init(2), losses={"first": 1.0, "second": 1.0}
        ),
    )
    assert_message(error, "constant: weights", "'first': *", "Pair")


def test_an_update_knows_no_names_but_those_it_is_given():
    inner = mt.metabalance(optax.sgd(0.1), K, anchor="res")

    def without_losses(updates, state, params=None, **extra):
        del extra
        return inner.update(updates, state, params)

    deaf = optax.GradientTransformationExtraArgs(inner.init, without_losses)
    error = refused(ValueError, lambda: step(mt.multi_steps(deaf, K, 1)))
    assert_message(error, "metabalance: anchor='res'", "found no losses")
