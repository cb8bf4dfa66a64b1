"""Functions of losses, and of rows, that are refused."""

import jax.numpy as jnp
import numpy as np
import optax

import multiterm_optax as mt
from tests.bad_input._step import (
    K,
    T,
    V,
    X,
    row_grads,
    row_losses,
    term_grads,
    two,
    weighted_grad,
)

# Name: what is done, the error, and words of its message, the speaker first.
REFUSED = {
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
        lambda: mt.value_and_one_grad(two)(0, jnp.ones(2, complex)),
        T,
        ["value_and_one_grad", "argument 0", "complex64", "parts as two leaves"],
    ),
    "a name among the parameters": (
        lambda: mt.value_and_term_grads(lambda p: two(p["w"]))({"w": X, "name": "w"}),
        T,
        ["value_and_term_grads", "argument 0['name']", "real floating point", "'w'"],
    ),
    "a model of Equinox": (
        lambda: mt.value_and_term_grads(lambda p: two(p["w"]))({"w": X, "act": two}),
        T,
        ["value_and_term_grads", "argument 0['act']", "eqx.is_inexact_array)"],
    ),
    "a switch among the parameters": (
        lambda: mt.value_and_term_grads(lambda p: two(p["w"]))({"w": X, "off": True}),
        T,
        ["value_and_term_grads", "argument 0['off']", "bool", "eqx.combine(params"],
    ),
    "a model of Equinox, init": (
        lambda: mt.balanced(optax.adam(0.1), K).init({"w": X, "act": two}),
        T,
        ["balanced", "params['act'] must be an array", "eqx.is_inexact_array)"],
    ),
    "a model of Equinox, update": (
        lambda: mt.sum_terms().update(
            {"w": jnp.ones((K, 2))}, optax.EmptyState(), {"w": X, "act": two}
        ),
        V,
        ["sum_terms", "without ['act']", "eqx.is_inexact_array)"],
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
    "row_weights negative": (
        row_grads(weights=[1.0, -1.0, 1.0, 1.0]),
        V,
        ["value_and_row_grads", "row_weights must be in [0, inf)", "-1.0"],
    ),
    "row_weights NaN": (
        row_grads(weights=jnp.array([1.0, jnp.nan, 1.0, 1.0])),
        V,
        ["value_and_row_grads", "row_weights must be in [0, inf)", "nan"],
    ),
    "row_weights text": (
        row_grads(weights=["1", "1", "1", "1"]),
        T,
        ["value_and_row_grads", "row_weights must be numbers", "'1'"],
    ),
    "capacity bool": (row_grads(capacity=True), V, ["capacity", "at least 1", "True"]),
}
