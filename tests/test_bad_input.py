"""Bad input: a clear error while tracing, or a result that is documented.

The cases of REFUSED are the mistakes a user makes. Each message names who speaks, the
argument, what was expected and what was found. What passes has a test below.
"""

import inspect
import re
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests import _factories
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_identical,
    assert_message,
    assert_same_structure,
    assert_zero,
)

# The library's own messages, as a user without a type checker sees them.
pytestmark = pytest.mark.usefixtures("own_errors")

K = 2
PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(())}
X = jnp.ones(2)


def grads(terms=K, params=PARAMS):
    return jax.tree.map(lambda p: jnp.ones((terms, *p.shape), p.dtype), params)


GRADS = grads()


def step(tx, updates=GRADS, params=PARAMS, *, state=..., **extra):
    """Traces one update; nothing is computed, so that what it raises, tracing raised.

    ``extra`` is not abstract: the losses and the mask are known to be what they are.
    """
    state = tx.init(PARAMS) if state is ... else state
    return jax.eval_shape(
        lambda u, s, p: tx.update(u, s, p, **extra), updates, state, params
    )


def mtadam(**options):
    return mt.mtadam(**{"learning_rate": 0.1, "num_terms": K, **options})


def reads(**extra):
    """A step of a weighting that reads losses."""
    return lambda: step(mt.reweight(mt.softadapt(), K), **extra)


def two(x):
    return jnp.stack([jnp.sum(x), jnp.sum(x**2)])


def term_grads(losses_fn, *args, **options):
    arguments = args or (X,)
    return lambda: jax.eval_shape(
        mt.value_and_term_grads(losses_fn, **options), *arguments
    )


def weighted_grad(weighting, losses_fn=two, **options):
    return lambda: mt.value_and_weighted_grad(losses_fn, weighting, **options)


def row_losses(params, rows):
    return (rows - jnp.sum(params)) ** 2


def row_grads(row_terms=(0, 1, 0, 1), fn=row_losses, rows=4, weights=None, **options):
    def call():
        apply = mt.value_and_row_grads(fn, **{"num_terms": K, **options})
        owners = row_terms if isinstance(row_terms, list) else jnp.asarray(row_terms)
        return jax.eval_shape(
            lambda x, r: apply(x, r, owners, row_weights=weights), X, jnp.ones(rows)
        )

    return call


MISSING = ["must have the term axis first", "the term axis is missing"]
LABELS = {"w": "x", "c": "y"}
V, T = ValueError, TypeError

# Name: what is done, the error, and words of its message, the speaker first.
REFUSED = {
    # The number of terms.
    "num_terms 0": (lambda: mtadam(num_terms=0), V, ["mtadam", "at least 1", "0"]),
    "num_terms -1": (lambda: mt.per_term(optax.sgd(1), -1), V, ["per_term", "-1"]),
    "num_terms float": (
        lambda: mt.adatask(optax.sgd(0.1), 2.0),
        T,
        ["adatask", "num_terms must be a static Python int", "2.0"],
    ),
    "num_terms bool": (lambda: mtadam(num_terms=True), T, ["mtadam", "int", "True"]),
    "num_terms text": (
        lambda: mt.reweight(mt.mgda(), "2"),
        T,
        ["reweight", "num_terms", "'2'"],
    ),
    "num_terms array": (
        lambda: mt.metrics.track_dominance(jnp.ones(2, int)),
        T,
        ["metrics.track_dominance", "num_terms", "shape (2,)"],
    ),
    "num_terms traced": (
        lambda: jax.eval_shape(lambda k: mtadam(num_terms=k).init(X), 2),
        T,
        ["mtadam", "num_terms", "traced", "static_args=('num_terms',)"],
    ),
    "learning rate and num_terms exchanged": (
        lambda: mt.mtadam(2, 1e-3),
        T,
        ["mtadam", "num_terms must be a static Python int", "0.001"],
    ),
    # Updates: shapes, structure, dtypes.
    "other K": (
        lambda: step(mtadam(), grads(3)),
        V,
        ["balance_by_norm", "num_terms=2", "updates['b']", "3 entries"],
    ),
    "summed gradients": (
        lambda: step(mtadam(), PARAMS),
        V,
        ["balance_by_norm", *MISSING, "value_and_term_grads"],
    ),
    "summed gradients, no params": (
        lambda: step(mt.sum_terms(), PARAMS, None),
        V,
        ["sum_terms", *MISSING],
    ),
    "leaves of different K": (
        lambda: step(mt.sum_terms(), {"w": jnp.ones((2, 4)), "b": jnp.ones(3)}, None),
        V,
        ["sum_terms", "same number of terms", "updates['w']", "2", "updates['b']", "3"],
    ),
    "term axis last": (
        lambda: step(mtadam(), jax.tree.map(lambda g: jnp.moveaxis(g, 0, -1), GRADS)),
        V,
        ["balance_by_norm", "(2, 4, 3)", "(4, 3, 2)"],
    ),
    "a leaf without gradient": (
        lambda: step(mtadam(), {"w": GRADS["w"], "b": None}),
        V,
        ["balance_by_norm", "tree structure of params", "without ['b']"],
    ),
    "gradients of something else": (
        lambda: step(mtadam(), {"v": GRADS["w"]}),
        V,
        ["balance_by_norm", "without ['b'] and 1 more", "with ['v']"],
    ),
    "no gradients": (
        lambda: step(mtadam(), None),
        V,
        ["balance_by_norm", "tree structure of params", "without ['b']"],
    ),
    "lists of numbers": (
        lambda: step(mtadam(), [[1.0, 2.0], [3.0, 4.0]], jnp.ones(2)),
        V,
        ["balance_by_norm", "tree structure of params", "[0][0] and 3 more"],
    ),
    "the pair (losses, grads)": (
        lambda: step(mtadam(), (jnp.ones(2), GRADS)),
        V,
        ["balance_by_norm", "value_and_term_grads returns the pair (losses, grads)"],
    ),
    "integers": (
        lambda: step(mt.sum_terms(), jnp.ones((2, 3), int), jnp.ones(3, int)),
        T,
        ["sum_terms", "updates must be real floating point", "int32"],
    ),
    "complex": (
        lambda: step(mtadam(), jnp.ones((2, 3), complex), jnp.ones(3, complex)),
        T,
        ["balance_by_norm", "updates must be real floating point", "complex64"],
    ),
    # Losses, weights, present.
    "losses of other K": (
        reads(losses=jnp.ones(3)),
        V,
        ["reweight", "losses must hold num_terms=2 values", "found 3"],
    ),
    "losses, a dict of too many": (
        reads(losses={"a": 1.0, "b": 1.0, "c": 1.0}),
        V,
        ["reweight", "losses must hold num_terms=2 values", "found 3"],
    ),
    "losses, their sum": (reads(losses=1.0), V, ["reweight", "losses", "found 1"]),
    "losses empty": (reads(losses={}), V, ["reweight", "losses", "found 0"]),
    "losses, a matrix": (
        reads(losses=jnp.ones((2, 2))),
        V,
        ["reweight", "an array [K] or a pytree of K scalars", "(2, 2)"],
    ),
    "losses, nested arrays": (
        reads(losses={"a": jnp.ones(1), "b": jnp.ones(1)}),
        V,
        ["reweight", "losses['a'] has shape (1,)"],
    ),
    "losses with aux": (
        reads(losses=(jnp.ones(2), {"accuracy": 0.5})),
        V,
        ["reweight", "losses[0] has shape (2,)"],
    ),
    "losses complex": (
        reads(losses=jnp.ones(2, complex)),
        T,
        ["reweight", "losses must be real numbers", "complex64"],
    ),
    "losses bool": (
        reads(losses=jnp.ones(2, bool)),
        T,
        ["reweight", "losses must be real numbers", "bool"],
    ),
    "losses text": (
        reads(losses={"a": "0.5", "b": 1.0}),
        T,
        ["reweight", "losses['a'] must be real numbers", "'0.5'"],
    ),
    "weights of other K": (
        lambda: mtadam(weights=[1.0, 1.0, 1.0]),
        V,
        ["balance_by_norm", "weights must have shape (2,)", "(3,)"],
    ),
    "one weight": (
        lambda: mtadam(weights=0.5),
        V,
        ["balance_by_norm", "weights must have shape (2,)", "()"],
    ),
    "negative weight": (
        lambda: mtadam(weights=[1.0, -1.0]),
        V,
        ["balance_by_norm", "weights must be in [0, inf)", "-1.0"],
    ),
    "NaN weight": (
        lambda: mtadam(weights=[1.0, np.nan]),
        V,
        ["balance_by_norm", "weights must be in [0, inf)", "nan"],
    ),
    "weights by name": (
        lambda: mtadam(weights={"fit": 1.0, "size": 1.0}),
        T,
        ["balance_by_norm", "weights must be 2 numbers", "'fit'"],
    ),
    "constant of other K": (
        lambda: mt.reweight(mt.constant([1.0, 1.0, 1.0]), K).init(PARAMS),
        V,
        ["constant", "weights must have shape (2,)", "(3,)"],
    ),
    "constant, unequal lists": (
        lambda: mt.constant([[1.0], [1.0, 2.0]]),
        V,
        ["constant", "weights must have shape [K]", "[[1.0], [1.0, 2.0]]"],
    ),
    "present of other K": (
        lambda: step(mtadam(), present=jnp.ones(3, bool)),
        V,
        ["balance_by_norm", "present", "(2,)", "(3,)"],
    ),
    "present of other K, K not given": (
        lambda: step(mt.sum_terms(), present=jnp.ones(3, bool)),
        V,
        ["sum_terms", "present", "(2,)", "(3,)"],
    ),
    "present of numbers": (
        lambda: step(mt.weighted(mt.mgda(), optax.sgd(1.0), K), present=jnp.ones(2)),
        V,
        ["weighted", "present", "booleans", "float32"],
    ),
    "present by name": (
        lambda: step(mtadam(), present={"fit": True, "size": False}),
        T,
        ["balance_by_norm", "present", "in the order of the terms", "'fit'"],
    ),
    # Hyperparameters; more of them are below, one by one.
    "learning rate None": (
        lambda: mtadam(learning_rate=None),
        T,
        ["mtadam", "learning_rate must be a number", "None"],
    ),
    "learning rate text": (
        lambda: mt.adatask_adam("0.1", K),
        T,
        ["adatask_adam", "learning_rate must be a number", "'0.1'"],
    ),
    "learning rate for each term": (
        lambda: mtadam(learning_rate=jnp.ones(2)),
        T,
        ["mtadam", "learning_rate must be a number", "shape (2,)"],
    ),
    "learning rate infinite": (
        lambda: mtadam(learning_rate=np.inf),
        V,
        ["mtadam", "learning_rate must be in (-inf, inf)", "found inf"],
    ),
    "anchor out of range": (
        lambda: mtadam(anchor=2),
        V,
        ["balance_by_norm", "anchor must be in [0, 1]", "found 2"],
    ),
    "anchor by name": (
        lambda: mt.metabalance(optax.sgd(0.1), K, anchor="fit"),
        T,
        ["metabalance", "anchor", "index of a term", "'fit'"],
    ),
    "anchor bool": (lambda: mtadam(anchor=True), T, ["anchor", "index", "True"]),
    "mu_dtype unknown": (
        lambda: mtadam(mu_dtype="big"),
        T,
        ["scale_by_max_adam", "mu_dtype", "floating-point dtype", "'big'"],
    ),
    "mu_dtype integer": (
        lambda: mtadam(mu_dtype=jnp.int8),
        T,
        ["scale_by_max_adam", "mu_dtype", "floating-point dtype", "int8"],
    ),
    "choice not offered": (
        lambda: mt.mgda("max"),
        V,
        ["mgda", "normalization must be one of None, 'l2'", "'max'"],
    ),
    "K passed to a weighting": (
        lambda: mt.mgda(K),
        V,
        ["mgda", "normalization must be one of", "found 2"],
    ),
    "groups by a word": (
        lambda: mtadam(groups="layer"),
        V,
        ["balance_by_norm", "groups must be 'leaf', 'global'", "'layer'"],
    ),
    "labels that do not match": (
        lambda: mtadam(groups=LABELS).init(PARAMS),
        V,
        ["balance_by_norm", "groups must be a tree of labels", "'c'"],
    ),
    "labels of two sorts": (
        lambda: mt.reweight(mt.mgda(), K, {"w": 1, "b": "x"}).init(PARAMS),
        T,
        ["reweight", "labels of one sort", "['x', 1]"],
    ),
    "key, a number": (
        lambda: mt.pcgrad(0),
        T,
        ["pcgrad", "key must be one key", "jax.random.key(0)", "found 0"],
    ),
    "several keys": (
        lambda: mt.grad_drop(jax.random.split(jax.random.key(0), K)),
        T,
        ["grad_drop", "key must be one key", "shape (2,)"],
    ),
    # What is put inside what.
    "inner by name": (
        lambda: mt.adatask("adam", K),
        T,
        ["adatask", "inner must be an optax.GradientTransformation", "'adam'"],
    ),
    "inner, a schedule": (
        lambda: mt.weighted(mt.mgda(), optax.constant_schedule(0.1), K),
        T,
        ["weighted", "inner must be an optax", "constant_schedule"],
    ),
    "inner, a learning rate": (
        lambda: mt.metabalance(0.1, K),
        T,
        ["metabalance", "inner must be an optax", "found 0.1"],
    ),
    "inner not called": (
        lambda: mt.multi_steps(mt.mtadam, K, 2),
        T,
        ["multi_steps", "inner must be", "did you mean mtadam(...)?"],
    ),
    "inner, a weighting": (
        lambda: mt.per_term(mt.mgda(), K),
        T,
        ["per_term", "found a Weighting", "reweight(weighting, num_terms)"],
    ),
    "inner that is K -> 1": (
        lambda: step(mt.weighted(mt.mgda(), mtadam(), K)),
        V,
        ["balance_by_norm", *MISSING, "only one aggregator"],
    ),
    "inner without its aggregator": (
        lambda: step(mt.multi_steps(mt.balance_by_norm(K), K, 2)),
        V,
        ["multi_steps", "inner must remove the term axis", "sum_terms()"],
    ),
    "weighting not called": (
        lambda: mt.weighted(mt.mgda, optax.sgd(0.1), K),
        T,
        ["weighted", "weighting must be", "did you mean mgda()?"],
    ),
    "weighting with arguments not called": (
        lambda: mt.reweight(mt.pcgrad, K),
        T,
        ["reweight", "weighting must be", "did you mean pcgrad(...)?"],
    ),
    "weighting, the weights": (
        lambda: mt.reweight([0.5, 0.5], K),
        T,
        ["reweight", "weighting must be", "such as mgda()", "[0.5, 0.5]"],
    ),
    "weighting and inner exchanged": (
        lambda: mt.weighted(optax.sgd(0.1), mt.mgda(), K),
        T,
        ["weighted", "weighting must be", "found an optax.GradientTransformation"],
    ),
    # Chains.
    "no aggregator": (
        lambda: step(mt.chain(mt.balance_by_norm(K), optax.sgd(0.1))),
        V,
        ["chain", "no stage removes the term axis", "sum_terms()", "after stages[0]"],
    ),
    "Adam instead of the aggregator": (
        lambda: step(mt.chain(mt.balance_by_norm(K), optax.adam(0.1))),
        V,
        ["chain", "stages[1] (optax.", "sum_terms()", "per_term"],
    ),
    "two aggregators": (
        lambda: step(mt.chain(mt.sum_terms(), mt.scale_by_max_adam(K))),
        V,
        ["scale_by_max_adam", *MISSING, "only one aggregator"],
    ),
    "two aggregators, no params": (
        lambda: step(optax.chain(mt.sum_terms(), mt.sum_terms()), params=None),
        V,
        ["sum_terms", *MISSING, "only one aggregator"],
    ),
    "per_term after the aggregator": (
        lambda: step(mt.chain(mt.sum_terms(), mt.per_term(optax.sgd(0.1), K))),
        V,
        ["per_term", *MISSING],
    ),
    "stage not called": (
        lambda: mt.chain(mt.balance_by_norm(K), mt.sum_terms),
        T,
        ["chain", "stages[1] must be", "did you mean sum_terms()?"],
    ),
    # States.
    "state of another transformation": (
        lambda: step(mt.balance_by_norm(K), state=optax.adam(0.1).init(PARAMS)),
        T,
        ["balance_by_norm", "state must be a BalanceByNormState", "found tuple"],
    ),
    "no state": (
        lambda: step(mt.weighted(mt.mgda(), optax.sgd(0.1), K), state=None),
        T,
        ["weighted", "state must be a WeightedState", "found NoneType"],
    ),
    "state of another weighting": (
        lambda: step(
            mt.reweight(mt.mgda(), K), state=mt.reweight(mt.equal(), K).init(PARAMS)
        ),
        V,
        ["reweight", "state must be as init", "with .weighting.fixed"],
    ),
    "state of other groups": (
        lambda: step(
            mt.balance_by_norm(K),
            state=mt.balance_by_norm(K, groups="global").init(PARAMS),
        ),
        V,
        ["balance_by_norm", "state must be as init", "same options"],
    ),
    "state of fewer terms": (  # which would broadcast
        lambda: step(mtadam(), state=mtadam(num_terms=1).init(PARAMS)),
        V,
        ["balance_by_norm", "state.norms['b']", "(2,)", "(1,)", "number of terms"],
    ),
    "state of other parameters": (
        lambda: step(mt.scale_by_max_adam(K), state=mt.scale_by_max_adam(K).init(X)),
        V,
        ["scale_by_max_adam", "state must be as init", "same parameters"],
    ),
    "state of the gradients": (
        lambda: step(
            mt.scale_by_max_adam(K), state=mt.scale_by_max_adam(K).init(GRADS)
        ),
        V,
        ["scale_by_max_adam", "state.mu['b']", "()", "(2,)", "other parameters"],
    ),
    # Functions of losses.
    "losses_fn, a matrix": (
        term_grads(lambda x: jnp.outer(x, x)),
        T,
        ["value_and_term_grads", "array [K] or a pytree of K scalars", "(2, 2)"],
    ),
    "losses_fn, integers": (
        term_grads(lambda x: jnp.array([1, 2])),
        T,
        ["value_and_term_grads", "losses must be real floating point", "int32"],
    ),
    "losses_fn, one integer": (
        term_grads(lambda x: {"fit": jnp.sum(x), "size": 0}),
        T,
        ["value_and_term_grads", "losses['size']", "real floating point", "int32"],
    ),
    "losses_fn, complex": (
        term_grads(lambda x: 1j * x),
        T,
        ["value_and_term_grads", "losses must be real floating point", "complex64"],
    ),
    "losses_fn, nothing": (
        term_grads(lambda x: None),
        V,
        ["value_and_term_grads", "at least one loss", "found none"],
    ),
    "losses_fn, no losses": (
        term_grads(lambda x: x[:0]),
        V,
        ["value_and_term_grads", "at least one loss"],
    ),
    "losses_fn, text": (
        term_grads(lambda x: {"fit": jnp.sum(x), "name": "fit"}),
        T,
        ["value_and_term_grads", "losses['name']", "real floating point", "'fit'"],
    ),
    "losses_fn, aux not announced": (
        term_grads(lambda x: (two(x), {"norm": 1.0})),
        T,
        ["value_and_term_grads", "losses[0] has shape (2,)", "has_aux=True"],
    ),
    "losses_fn, aux missing": (
        term_grads(two, has_aux=True),
        T,
        ["value_and_term_grads", "a pair (losses, aux)", "an array of shape (2,)"],
    ),
    "losses_fn, its result": (
        lambda: mt.value_and_term_grads(two(X)),
        T,
        ["value_and_term_grads", "losses_fn must be a function", "shape (2,)"],
    ),
    "row_losses_fn None": (
        lambda: mt.value_and_row_grads(None, K),
        T,
        ["value_and_row_grads", "row_losses_fn must be a function", "None"],
    ),
    "argnums out of range": (
        term_grads(two, argnums=1),
        V,
        ["value_and_term_grads", "argnums=1", "1 positional"],
    ),
    "parameters by name": (
        lambda: mt.value_and_term_grads(two)(x=X),
        V,
        ["value_and_term_grads", "argnums=0", "0 positional", "by name"],
    ),
    "argnums by name": (
        term_grads(two, argnums="x"),
        T,
        ["value_and_term_grads", "argnums must be an int or a sequence", "'x'"],
    ),
    "argnums None": (
        term_grads(two, argnums=None),
        T,
        ["value_and_term_grads", "argnums must be an int or a sequence", "None"],
    ),
    "argnums twice": (
        term_grads(two, argnums=(0, 0)),
        V,
        ["value_and_term_grads", "argnums", "once", "(0, 0)"],
    ),
    "integer parameters": (
        term_grads(two, jnp.ones(2, int)),
        T,
        ["value_and_term_grads", "argument 0", "to be differentiated", "int32"],
    ),
    "complex parameters": (
        term_grads(lambda x: jnp.abs(x), jnp.ones(2, complex)),
        T,
        ["value_and_term_grads", "argument 0", "to be differentiated", "complex64"],
    ),
    "a name among the parameters": (
        lambda: mt.value_and_term_grads(lambda p: two(p["w"]))({"w": X, "name": "w"}),
        T,
        ["value_and_term_grads", "argument 0['name']", "real floating point", "'w'"],
    ),
    "weighted_grad, weighting not called": (
        weighted_grad(mt.mgda),
        T,
        ["value_and_weighted_grad", "weighting must be", "did you mean mgda()?"],
    ),
    "weighted_grad, arguments exchanged": (
        weighted_grad(two, losses_fn=mt.mgda()),
        T,
        ["value_and_weighted_grad", "losses_fn must be a function", "a Weighting"],
    ),
    "weighted_grad, without its state": (
        lambda: mt.value_and_weighted_grad(two, mt.mgda()).update(X),
        T,
        ["value_and_weighted_grad", "update(state, *args)", "init(num_terms)"],
    ),
    "weighted_grad, other K": (
        lambda: mt.value_and_weighted_grad(two, mt.mgda()).update(
            mt.value_and_weighted_grad(two, mt.mgda()).init(3), X
        ),
        V,
        ["value_and_weighted_grad", "num_terms=3", "found 2"],
    ),
    "row_terms, numbers": (
        row_grads((0.0, 1.0, 0.0, 1.0)),
        T,
        ["value_and_row_grads", "row_terms must be integers", "float32"],
    ),
    "row_terms, names": (
        row_grads(["a", "b", "a", "b"]),
        T,
        ["value_and_row_grads", "row_terms must be integers", "['a', 'b'"],
    ),
    "row_terms, too few": (
        row_grads((0, 1, 0)),
        V,
        ["value_and_row_grads", "rows must have 3 rows", "(4,)"],
    ),
    "row losses, their mean": (
        row_grads(fn=lambda p, r: jnp.mean(row_losses(p, r))),
        V,
        ["value_and_row_grads", "one loss for each row", "found ()"],
    ),
    "row losses, a list": (
        row_grads(fn=lambda p, r: [0.0, 0.0]),
        V,
        ["value_and_row_grads", "one loss for each row", "found list"],
    ),
    "row weights, too few": (
        row_grads(weights=np.ones(3)),
        V,
        ["value_and_row_grads", "row_weights must have shape (4,)", "(3,)"],
    ),
    "capacity bool": (row_grads(capacity=True), V, ["capacity", "at least 1", "True"]),
}


@cache
def message(case):
    call, error, _ = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused(case):
    text = message(case)
    assert_message(text, *REFUSED[case][2])
    speaker = text.split(":")[0]
    assert callable(getattr(mt, speaker.split(".")[0])) or speaker.startswith("metrics")
    assert text.endswith((".", "?")), text
    assert len(text) < 500, "nobody reads that much"


def test_there_are_many():
    assert len(REFUSED) >= 60


LOSS_READERS = {
    "softadapt": mt.softadapt,
    "dwa": mt.dwa,
    "lbtw": mt.lbtw,
    "gradnorm": mt.gradnorm,
    "uncertainty": mt.uncertainty,
    "mgda, loss": lambda: mt.mgda("loss"),
    "mgda, loss+": lambda: mt.mgda("loss+"),
    "inexact_mgda, loss": lambda: mt.inexact_mgda(0.1, "loss"),
}


@pytest.mark.parametrize("method", LOSS_READERS)
def test_missing_losses(method):
    weighting = LOSS_READERS[method]()
    for tx in (
        mt.reweight(weighting, K),
        mt.weighted(weighting, optax.sgd(0.1), K),
        mt.multi_steps(mt.weighted(weighting, optax.sgd(0.1), K), K, 1),
    ):
        with pytest.raises(ValueError, match="reads the losses") as caught:
            step(tx)
        assert_message(
            caught.value, "tx.update(grads, state, params, losses=losses)", "found none"
        )


def test_weightings_that_need_no_losses_are_known():
    names = set(_factories.exported_functions("weightings"))
    others = names - {name.split(",")[0] for name in LOSS_READERS}
    for name in others:
        step(mt.weighted(build_weighting(name), optax.sgd(0.1), 3), grads(3))


# --- every hyperparameter ------------------------------------------------------------

WEIGHTING_ARGUMENTS = {
    "constant": {"weights": [1.0, 1.0, 1.0]},
    "inexact_mgda": {"eps": 0.1},
    "pcgrad": {"key": jax.random.key(0)},
}
# May be negative, as in Optax, or where the formula gives it a sense.
ANY_SIGN = {"learning_rate", "weight_decay", "beta"}
# Numbers whose default is another thing.
NUMBERS = {"learning_rate", "weight_decay", "norm_init", "steps_per_epoch", "leak"}


def build_weighting(name, **options):
    function = _factories.exported_functions("weightings")[name]
    return function(**{**WEIGHTING_ARGUMENTS.get(name, {}), **options})


def hyperparameters():
    """(name, builder, argument) of every number that a method takes."""
    for factory in _factories.factories():
        for argument in numbers_of(factory.function):
            yield factory.name, factory.build, argument
    for name, function in _factories.exported_functions("weightings").items():
        for argument in numbers_of(function):
            yield (
                name,
                partial(build_weighting, name),
                argument,
            )


def numbers_of(function):
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, float) or name in NUMBERS
    ]


HYPERPARAMETERS = {
    f"{name}.{argument}": (name, build, argument)
    for name, build, argument in hyperparameters()
}


def test_hyperparameters_are_found():
    assert HYPERPARAMETERS.keys() >= {
        "mtadam.learning_rate",
        "mtadam.b3",
        "mtadam.weight_decay",
        "metabalance.relax",
        "adaptive_mgda.scale",
        "dwa.temperature",
        "cagrad.c",
        "grad_drop.leak",
    }


@pytest.mark.parametrize("which", HYPERPARAMETERS)
def test_hyperparameter_out_of_range_is_refused(which):
    _, build, argument = HYPERPARAMETERS[which]
    bad = [np.nan, "0.5", 1j, jnp.ones(7), True, {}]
    if argument not in ANY_SIGN:
        bad.append(-0.5)
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=f"{argument} must") as caught:
            use(build(**{argument: value}))
        assert_message(caught.value, ":", "found")


def use(made):
    """A number for each term is looked at where their number is known."""
    if hasattr(made, "reads_gramian"):
        return made.init(_factories.TERMS)
    return step(made, grads(_factories.TERMS), losses=_factories.example_losses())


@pytest.mark.parametrize("which", HYPERPARAMETERS)
def test_hyperparameter_may_be_traced(which):
    _, build, argument = HYPERPARAMETERS[which]
    if which in ("lbtw.steps_per_epoch", "dwa.steps_per_epoch"):
        return  # a static int, and named so in its error
    jax.eval_shape(lambda value: [use(build(**{argument: value})), None][1], 0.5)
    with pytest.raises(TypeError, match=f"{argument} must"):
        jax.eval_shape(lambda value: build(**{argument: value}).init(K), 0.5j)


# --- states --------------------------------------------------------------------------

FACTORIES = _factories.factories()
each_factory = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.name)


@each_factory
def test_a_state_of_other_terms_is_refused(factory):
    losses = _factories.example_losses()
    tx = factory.build()
    assert step(tx, grads(_factories.TERMS), losses=losses)
    shapes = [
        [leaf.shape for leaf in jax.tree.leaves(one.init(PARAMS))]
        for one in (tx, factory.build(num_terms=1), factory.build(num_terms=4))
    ]
    if shapes[0] == shapes[1]:
        return  # nothing in the state tells
    for terms in (1, 4):
        state = factory.build(num_terms=terms).init(PARAMS)
        with pytest.raises(ValueError, match="state") as caught:
            step(tx, grads(_factories.TERMS), state=state, losses=losses)
        assert_message(caught.value, "must have", f"({terms},", "number of terms")


@each_factory
def test_a_state_of_another_transformation_is_refused(factory):
    tx = factory.build()
    if not jax.tree.leaves(tx.init(PARAMS)):
        return
    others = {
        "trace": optax.trace(0.9).init(PARAMS),
        "chain": optax.chain(optax.adam(0.1), optax.trace(0.9)).init(PARAMS),
    }
    for state in others.values():
        with pytest.raises((TypeError, ValueError)):
            step(
                tx,
                grads(_factories.TERMS),
                state=state,
                losses=_factories.example_losses(),
            )


# Without params a leaf whose first axis happens to have K entries may pass for one with
# the term axis. A state that knows the parameters' shapes tells.
@each_factory
def test_ambiguous_shapes_without_params(factory):
    params = {"w": jnp.ones((_factories.TERMS, 2))}
    tx, losses = factory.build(), _factories.example_losses()
    state = tx.init(params)
    knows = any(leaf.shape[-2:] == params["w"].shape for leaf in jax.tree.leaves(state))
    if not knows or factory.name == "metabalance":  # Optax's chain holds that state
        return  # docs/errors.md: give params
    with pytest.raises((ValueError, TypeError)):
        step(tx, params, None, state=state, losses=losses)
    with pytest.raises(ValueError, match="term axis"):
        step(tx, params, params, state=state, losses=losses)


# --- what passes, and what comes out -------------------------------------------------


def update(tx, updates=GRADS, params=PARAMS, **extra):
    found, _ = tx.update(updates, tx.init(params), params, **extra)
    return found


HOLES = {"w": jnp.ones(2), "none": None, "empty": jnp.ones((0, 3)), "rest": ()}


@each_factory
def test_leaves_that_are_none_or_empty(factory):
    tx = factory.build()
    updates = grads(_factories.TERMS, HOLES)
    losses = _factories.example_losses()
    found, _ = step(tx, updates, HOLES, state=tx.init(HOLES), losses=losses)
    assert_same_structure(found, HOLES)
    lead = (_factories.TERMS,) if factory.keeps_terms else ()
    assert found["empty"].shape == (*lead, 0, 3)


@pytest.mark.parametrize(
    "build", [mtadam, lambda: mt.weighted(mt.mgda(), optax.adam(0.1), K)]
)
def test_empty_leaves_change_nothing_for_the_others(build):
    tx, updates = build(), grads(K, HOLES)
    found, state = jax.jit(tx.update)(updates, tx.init(HOLES), HOLES)
    assert_finite(state)
    alone = update(tx, {"w": updates["w"]}, {"w": HOLES["w"]})
    assert_close(found["w"], alone["w"], rtol=1e-6)


@each_factory
def test_no_parameters_at_all(factory):
    tx, losses = factory.build(), _factories.example_losses()
    found, _ = jax.eval_shape(
        lambda state: tx.update({}, state, {}, losses=losses), tx.init({})
    )
    assert found == {}


@each_factory
def test_leaves_of_several_dtypes_keep_their_own(factory):
    params = {"h": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(2, jnp.float32)}
    found, _ = step(
        factory.build(),
        grads(_factories.TERMS, params),
        params,
        state=factory.build().init(params),
        losses=_factories.example_losses(),
    )
    assert jax.tree.map(lambda u: u.dtype, found) == {"h": "bfloat16", "f": "float32"}


@pytest.mark.parametrize(
    "build", [mtadam, lambda: mt.weighted(mt.dwa(), optax.adam(0.1), K)]
)
def test_numpy_arrays_and_python_numbers(build):
    plain = {"w": jnp.ones(2), "s": jnp.ones(())}
    other = {"w": np.ones(2, np.float32), "s": 1.0}
    tx, updates = build(), grads(K, plain)
    as_numpy = jax.tree.map(np.asarray, updates)
    found, _ = tx.update(as_numpy, tx.init(other), other, losses=[0.5, 2.0])
    expected = update(tx, updates, plain, losses=jnp.array([0.5, 2.0]))
    assert_close(found, expected, rtol=1e-6)


def test_losses_may_be_integers_or_in_any_tree():
    tx = mt.reweight(mt.constant([1.0, 3.0]), K)
    dwa = mt.reweight(mt.dwa(), K)
    expected = update(dwa, losses=jnp.array([2.0, 1.0]))
    for losses in (
        jnp.array([2, 1]),
        [2.0, 1.0],
        {"a": 2.0, "b": jnp.ones(())},
        (jnp.array([2.0, 1.0]), None),
    ):
        assert_identical(update(dwa, losses=losses), expected)
        assert_identical(update(tx, losses=losses), update(tx))


def test_a_negative_learning_rate_goes_uphill():
    assert_identical(
        update(mtadam(learning_rate=-0.1)),
        jax.tree.map(lambda u: -u, update(mtadam(learning_rate=0.1))),
    )


def test_one_loss_that_is_a_scalar_is_one_term():
    losses, found = mt.value_and_term_grads(jnp.sum)(X)
    assert losses.shape == ()
    assert_identical(found, jnp.ones((1, 2)))


def test_a_loss_that_does_not_depend_on_the_parameters():
    losses, found = mt.value_and_term_grads(lambda x: [jnp.sum(x), 1.0])(X)
    assert losses[1] == 1.0
    assert_identical(found, jnp.array([[1.0, 1.0], [0.0, 0.0]]))


def test_aux_of_a_pair_of_scalars_is_the_second():
    (losses, aux), found = mt.value_and_term_grads(
        lambda x: (jnp.sum(x), jnp.sum(x**2)), has_aux=True
    )(X)
    assert (float(losses), float(aux)) == (2.0, 2.0)
    assert found.shape == (1, 2)


def test_argnums_may_be_a_numpy_integer():
    _, found = mt.value_and_term_grads(two, argnums=np.int64(0))(X)
    assert found.shape == (K, 2)


def test_rows_of_a_term_that_is_not_there():
    fn = jax.jit(mt.value_and_row_grads(row_losses, K))
    losses, found = fn(X, jnp.ones(4), jnp.array([0, 1, 0, K]))
    assert jnp.all(jnp.isnan(losses))
    assert jnp.all(jnp.isnan(found))
    losses, found = fn(X, jnp.ones(4), jnp.array([0, 0, 0, -1]))
    assert_identical(losses, jnp.array([1.0, 0.0]))
    assert_zero(found[1])


def test_hyperparameters_may_be_arrays_without_axes():
    plain = update(mtadam(b1=0.5))
    for value in (np.float32(0.5), jnp.array(0.5), np.array(0.5)):
        assert_close(update(mtadam(b1=value)), plain, rtol=1e-6)


# --- what no check can see ------------------------------------------------------------


def test_optax_chain_does_not_miss_an_aggregator():
    """Which is what ``multiterm_optax.chain`` is for."""
    tx = optax.chain(mt.balance_by_norm(K), optax.adam(0.1))
    updates = update(tx)
    assert updates["w"].shape == (K, 4, 3)
    params = optax.apply_updates(PARAMS, updates)
    assert params["w"].shape == (K, 4, 3)
    with pytest.raises(ValueError, match="sum_terms"):
        step(mt.chain(mt.balance_by_norm(K), optax.adam(0.1)))


def test_an_ordinary_optimizer_does_not_miss_the_sum():
    assert update(optax.adam(0.1))["w"].shape == (K, 4, 3)


def test_decay_inside_needs_params():
    for tx in (mtadam(weight_decay=0.1), mt.adatask(optax.adamw(0.1), K)):
        with pytest.raises(ValueError, match="not passing `params`"):
            step(tx, params=None)


# --- NaN and infinity in one element of one term -----------------------------------

SPOILT = {"a": (K, 3), "b": (K, 2)}
ROOM = {"a": jnp.zeros(3), "b": jnp.zeros(2)}


def spoilt(value):
    rng = np.random.default_rng(0)
    out = {name: rng.normal(size=shape) for name, shape in SPOILT.items()}
    out["a"][0, 1] = value
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), out)


def where_not_finite(tree):
    return {name: np.argwhere(~np.isfinite(x)).tolist() for name, x in tree.items()}


def run_spoilt(tx, value, after=False):
    """Where the update is not finite: in that step or in the next, which is sound."""
    losses = jnp.ones(K)
    update = jax.jit(tx.update)
    updates, state = update(spoilt(value), tx.init(ROOM), ROOM, losses=losses)
    if after:
        updates, state = update(spoilt(1.0), state, ROOM, losses=losses)
    return where_not_finite(updates)


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
    "apply_if_finite": (lambda: mt.apply_if_finite(mtadam(), K, 5), CLEAN, CLEAN),
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("stage", STAYS_APART)
def test_one_element_that_is_not_finite(stage, value):
    build, now, then = STAYS_APART[stage]
    found = run_spoilt(build(), value)
    # Divided by itself or by a norm, infinity may leave as a zero.
    for name, places in found.items():
        assert all(place in now[name] for place in places), found
    if np.isnan(value):
        assert found == now
        assert run_spoilt(build(), value, after=True) == then


@pytest.mark.parametrize("method", ["mgda", "pcgrad"])
def test_a_gramian_keeps_what_is_not_finite_in_its_group(method):
    by_leaf = run_spoilt(mt.reweight(build_weighting(method), K, "leaf"), np.nan)
    assert by_leaf["b"] == []
    assert [0, 1] in by_leaf["a"]
    whole = mt.reweight(build_weighting(method), K)
    kept = mt.apply_if_finite(mt.chain(whole, mt.sum_terms()), K, 5)
    assert run_spoilt(kept, np.nan) == CLEAN


# --- the page ------------------------------------------------------------------------


def test_the_page_quotes_real_messages():
    page = Path(__file__).resolve().parents[1] / "docs" / "errors.md"
    table = page.read_text().split("## Messages")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert len(quoted) > 15
    messages = [message(case) for case in REFUSED]
    messages.append("this weighting reads the losses")  # test_missing_losses
    for quote in quoted:
        parts = [part.strip() for part in quote.split("...")]
        assert any(all(part in text for part in parts) for text in messages), quote
