"""How the tests of bad input take a step."""

import jax
import jax.numpy as jnp
import pytest

import multiterm_optax as mt
from tests import _factories

K = 2
PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(())}
X = jnp.ones(2)
LOSSES = {"fit": 1.0, "size": 2.0}


def grads(terms=K, params=PARAMS):
    return jax.tree.map(lambda p: jnp.ones((terms, *p.shape), p.dtype), params)


GRADS = grads()


def step(tx, updates=GRADS, params=PARAMS, *, state=..., **extra):
    """Traces one update; nothing is computed, so that what it raises, tracing raised.

    ``extra`` is not abstract: the losses and the mask are known to be what they are.
    """
    state = jax.eval_shape(lambda: tx.init(PARAMS)) if state is ... else state
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


each_factory = pytest.mark.parametrize(
    "factory", _factories.factories(), ids=lambda f: f.name
)
