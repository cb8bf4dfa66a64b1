"""Bad input that a factory refuses, or one stage in another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import multiterm_optax as mt
from tests.bad_input._step import (
    LABELS,
    MISSING,
    PARAMS,
    K,
    T,
    V,
    X,
    mtadam,
    step,
)

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
        ["mtadam", "anchor must be in [0, 1]", "found 2"],
    ),
    "anchor between terms": (
        lambda: mt.metabalance(optax.sgd(0.1), K, anchor=0.5),
        T,
        ["metabalance", "anchor", "index of a term", "0.5"],
    ),
    "anchor bool": (lambda: mtadam(anchor=True), T, ["anchor", "index", "True"]),
    "mu_dtype unknown": (
        lambda: mtadam(mu_dtype="big"),
        T,
        ["mtadam", "mu_dtype", "floating-point dtype", "'big'"],
    ),
    "mu_dtype integer": (
        lambda: mtadam(mu_dtype=jnp.int8),
        T,
        ["mtadam", "mu_dtype", "floating-point dtype", "int8"],
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
        ["mtadam", "groups must be 'leaf', 'global'", "'layer'"],
    ),
    "labels that do not match": (
        lambda: mtadam(groups=LABELS).init(PARAMS),
        V,
        ["mtadam", "groups must be a tree of labels", "'c'"],
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
        ["adatask", "inner must be an optax.GradientTransformation, such as", "'adam'"],
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
        ["mtadam", *MISSING, "only one aggregator"],
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
}
