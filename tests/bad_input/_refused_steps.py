"""Bad input that a step refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import multiterm_optax as mt
from tests.bad_input._step import (
    GRADS,
    LOSSES,
    MISSING,
    PARAMS,
    K,
    T,
    V,
    X,
    grads,
    mtadam,
    reads,
    step,
)

# Name: what is done, the error, and words of its message, the speaker first.
REFUSED = {
    # Updates: shapes, structure, dtypes.
    "other K": (
        lambda: step(mtadam(), grads(3)),
        V,
        ["mtadam", "num_terms=2", "updates['b']", "3 entries"],
    ),
    "other K, with names": (
        lambda: step(mtadam(), grads(3), losses=LOSSES),
        V,
        ["mtadam", "num_terms=2 (in the order fit, size), but the term axis has 3"],
    ),
    "summed gradients": (
        lambda: step(mtadam(), PARAMS),
        V,
        ["mtadam", *MISSING, "value_and_term_grads"],
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
        ["mtadam", "(2, 4, 3)", "(4, 3, 2)"],
    ),
    "a leaf without gradient": (
        lambda: step(mtadam(), {"w": GRADS["w"], "b": None}),
        V,
        ["mtadam", "tree structure of params", "without ['b']"],
    ),
    "gradients of something else": (
        lambda: step(mtadam(), {"v": GRADS["w"]}),
        V,
        ["mtadam", "without ['b'] and 1 more", "with ['v']"],
    ),
    "no gradients": (
        lambda: step(mtadam(), None),
        V,
        ["mtadam", "tree structure of params", "without ['b']"],
    ),
    "lists of numbers": (
        lambda: step(mtadam(), [[1.0, 2.0], [3.0, 4.0]], jnp.ones(2)),
        V,
        ["mtadam", "tree structure of params", "[0][0] and 3 more"],
    ),
    "the pair (losses, grads)": (
        lambda: step(mtadam(), (jnp.ones(2), GRADS)),
        V,
        ["mtadam", "value_and_term_grads returns the pair (losses, grads)"],
    ),
    "integers": (
        lambda: step(mt.sum_terms(), jnp.ones((2, 3), int), jnp.ones(3, int)),
        T,
        ["sum_terms", "updates must be real floating point", "int32"],
    ),
    "complex": (
        lambda: step(mtadam(), jnp.ones((2, 3), complex), jnp.ones(3, complex)),
        T,
        ["mtadam", "updates must be real floating point", "complex64", "split_real"],
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
        ["mtadam", "weights must have shape (2,)", "(3,)"],
    ),
    "one weight": (
        lambda: mtadam(weights=0.5),
        V,
        ["mtadam", "weights must have shape (2,)", "()"],
    ),
    "negative weight": (
        lambda: mtadam(weights=[1.0, -1.0]),
        V,
        ["mtadam", "weights must be in [0, inf)", "-1.0"],
    ),
    "NaN weight": (
        lambda: mtadam(weights=[1.0, np.nan]),
        V,
        ["mtadam", "weights must be in [0, inf)", "nan"],
    ),
    "weights by other names": (
        lambda: step(mtadam(weights={"fit": 1.0, "sze": 1.0}), losses=LOSSES),
        V,
        ["mtadam", "weights", "the structure of the losses", "'size'", "'sze'"],
    ),
    "weights by name, losses in a list": (
        lambda: step(mtadam(weights=LOSSES), losses=list(LOSSES.values())),
        V,
        ["mtadam", "weights", "the structure of the losses", "[*, *]", "'size'"],
    ),
    "weights by name, losses in an array": (
        lambda: step(mtadam(weights=LOSSES), losses=jnp.ones(K)),
        V,
        ["mtadam", "weights", "an array without names", "'size'"],
    ),
    "weights by too many names": (
        lambda: mtadam(weights={**LOSSES, "more": 1.0}),
        V,
        ["mtadam", "weights must have shape (2,)", "(3,)", "(fit, more, size)"],
    ),
    "weights by name, one an array": (
        lambda: mtadam(weights={**LOSSES, "fit": jnp.ones(3)}),
        V,
        ["mtadam", "weights must hold one value for each term", "weights['fit']"],
    ),
    "weights by name, one a word": (
        lambda: mtadam(weights={**LOSSES, "fit": "much"}),
        T,
        ["mtadam", "weights must be 2 numbers", "'much'"],
    ),
    "weights by name, one negative": (
        lambda: mtadam(weights={**LOSSES, "fit": -1.0}),
        V,
        ["mtadam", "weights['fit'] must be in [0, inf)", "-1.0"],
    ),
    "anchor by name without losses": (
        lambda: step(mt.metabalance(optax.sgd(0.1), K, anchor="fit")),
        V,
        ["metabalance", "anchor='fit' must be the name of one of the losses"],
    ),
    "anchor by an unknown name": (
        lambda: step(mt.metabalance(optax.sgd(0.1), K, anchor="fti"), losses=LOSSES),
        V,
        ["metabalance", "anchor must be the index or the name", "fit, size", "'fti'"],
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
        ["mtadam", "present", "(2,)", "(3,)"],
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
    "present by other names": (
        lambda: step(mtadam(), present={"fit": True}, losses=LOSSES),
        V,
        ["mtadam", "present", "the structure of the losses", "'fit'", "'size'"],
    ),
    "present of other K, with names": (
        lambda: step(mtadam(), present=[True], losses=LOSSES),
        V,
        ["mtadam", "present", "(2,)", "(in the order fit, size)", "(1,)"],
    ),
    "losses of other names": (
        lambda: step(mt.reweight(mt.by_loss(), K), losses={"a": 1.0}),
        V,
        ["reweight", "losses must hold num_terms=2 values", "found 1 (a)"],
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
        ["mtadam", "state.norms['b']", "(2,)", "(1,)", "number of terms"],
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
}
