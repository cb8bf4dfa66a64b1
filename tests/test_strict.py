"""JAX's strict settings: a program that turns them on can use the library.

Promotions of ranks and of dtypes are refused while a program is traced, so that most of
these tests compile nothing.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import multiterm_optax as mt
from tests import _factories, _methods
from tests._params import some

K = _factories.TERMS
# All terms conflict with one another, so that the solver has something to do.
GRAMIAN = jnp.array([[4.0, -1.0, -0.5], [-1.0, 2.0, -0.3], [-0.5, -0.3, 1.0]])
LOSSES = _factories.example_losses()
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(())}
GRADS = jax.tree.map(lambda p: jnp.ones((K, *p.shape)), PARAMS)
PRESENT = jnp.array([True, False, True])

METHODS = _methods.factories()
STAGES = {f"{one.stage}.{one.name}": one for one in _factories.factories()}


@contextlib.contextmanager
def strict():
    """All settings at once, since an error says which of them it is of."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.checking_leaks(),
    ):
        yield


# Optax's Adam, which these learn or step with by default, is refused itself: it raises
# a decay to the power of an integer.
LEARNERS = {"gradnorm", "uncertainty"}
WHOLE = {"wrappers.multi_steps", "wrappers.apply_if_finite", "wrappers.masked"}


def weighting_step(method, **options):
    """A step of the weighting as a function of gramian, losses and mask."""
    weighting = method.make(K, **options)

    def step(gramian, losses, present):
        products = _methods.products(method, gramian)
        state = weighting.init(K)
        for mask in (None, present):
            found = weighting.update(products, state, losses=losses, present=mask)
            weights, state = found
        return weights, state

    return step


def stage(name):
    """A transformation with plain descent inside, in place of Adam."""
    if name == "wrappers.chain":
        return mt.chain(mt.sum_terms(), optax.sgd(0.1))
    whole = optax.chain(mt.sum_terms(), optax.sgd(0.1))
    return STAGES[name].build(inner=whole if name in WHOLE else optax.sgd(0.1))


def losses_fn(params):
    w, b = params["w"], params["b"]
    return {"a": jnp.sum(w * w), "b": b * b, "c": jnp.sum(w) * b}


def row_losses(params, rows):
    return rows @ jnp.sum(params["w"], axis=0) + params["b"]


@pytest.mark.parametrize("name", METHODS)
def test_weighting(name):
    options = {"optimizer": optax.sgd(0.1)} if name in LEARNERS else {}
    with strict():
        jax.eval_shape(
            weighting_step(METHODS[name], **options), GRAMIAN, LOSSES, PRESENT
        )


@pytest.mark.parametrize("name", STAGES)
def test_transformation(name):
    def step(grads, losses, present):
        tx = stage(name)
        state = tx.init(PARAMS)
        for extra in ({}, {"present": present}):
            updates, state = tx.update(grads, state, PARAMS, losses=losses, **extra)
        return updates, state

    with strict():
        jax.eval_shape(step, GRADS, LOSSES, PRESENT)


def weighted_grad(weighting):
    def step(params):
        fn = mt.value_and_weighted_grad(losses_fn, weighting)
        return fn.update(fn.init(num_terms=K), params)

    return step


def row_grads(reduction, passes):
    def step(params):
        fn = mt.value_and_row_grads(row_losses, K, reduction=reduction, passes=passes)
        rows, terms = jnp.ones((7, 3)), jnp.array([0, 1, 1, 2, 0, 1, 1])
        return fn(params, rows, terms, row_weights=jnp.ones(7))

    return step


def attended(params):
    attention = mt.residual_attention()
    return attention.update(jnp.sum(params["w"], axis=1), attention.init(2))


def rows_as_terms(weighting, **owners):
    def step(params):
        fn = mt.value_and_weighted_grad(row_losses, weighting, gramian="rows")
        return fn.update(fn.init(K), params, jnp.ones((K, 3)), **owners)

    return step


def at_the_cuts(weighting):
    """A layer large enough that its gradients are not made, and a table."""

    def losses_fn(layer, table):
        rows = table.at[jnp.array([1, 3])].get(mode="clip") @ layer
        return jnp.sum(rows[:, :K] ** 2, axis=0)

    def step(params):
        del params
        layer, table = jnp.ones((128, 128)), jnp.ones((512, 128))
        fn = mt.value_and_weighted_grad(losses_fn, weighting, argnums=(0, 1))
        return fn.update(fn.init(K), layer, table)

    return step


def feature_grad(params):
    fn = mt.value_and_feature_grad(
        lambda w: w * 2.0,
        lambda z, b: {"a": jnp.sum(z), "b": jnp.sum(z**2) * b, "c": b},
        mt.mgda(),
    )
    return fn.update(fn.init(K), params["w"], params["b"])


GRADIENTS = {
    "value_and_feature_grad": feature_grad,
    "value_and_weighted_grad, cuts": at_the_cuts(mt.mgda()),
    "value_and_weighted_grad, norms at cuts": at_the_cuts(mt.by_norm()),
    "value_and_weighted_grad, rows": rows_as_terms(mt.mgda()),
    "value_and_weighted_grad, norms of rows": rows_as_terms(mt.by_norm()),
    "value_and_weighted_grad, owners": rows_as_terms(
        mt.mgda(), row_terms=np.array([0, 2, 2]), row_weights=np.ones(K, np.float32)
    ),
    "value_and_term_grads": mt.value_and_term_grads(losses_fn),
    "term_grads": mt.term_grads(losses_fn),
    "value_and_weighted_grad, losses": weighted_grad(mt.by_loss()),
    "value_and_weighted_grad, norms": weighted_grad(mt.by_norm()),
    "value_and_weighted_grad, gramian": weighted_grad(mt.mgda()),
    "value_and_row_grads": row_grads("mean", None),
    "value_and_row_grads, vmap": row_grads("sum", "vmap"),
    "ntk_traces": mt.ntk_traces(losses_fn),
    "ntk_traces, in batches": mt.ntk_traces(losses_fn, batch_size=2),
    "residual_attention": attended,
    "metrics.norms": lambda params: mt.metrics.norms(GRADS),
    "metrics.cosines": lambda params: mt.metrics.cosines(GRADS),
    "metrics.conflicts": lambda params: mt.metrics.conflicts(GRADS),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_and_metrics(name):
    with strict():
        jax.eval_shape(GRADIENTS[name], PARAMS)


# Of those that share a solver one is enough.
CHECKED = sorted(METHODS.keys() - {"compose", "dual_proj", "frozen", "inexact_mgda"})


# One with loops and indices by default, and one that reads losses.
@pytest.mark.parametrize("name", some(CHECKED, {"pcgrad", "softadapt"}))
def test_weighting_passes_checkify_s_checks_of_indices_and_floats(name):
    weighting = METHODS[name].make(K)
    products = _methods.products(METHODS[name], GRAMIAN)

    def step(products, losses):
        return weighting.update(products, weighting.init(K), losses=losses)

    checks = checkify.float_checks | checkify.index_checks
    error, _ = jax.jit(checkify.checkify(step, errors=checks))(products, LOSSES)
    error.throw()


@pytest.mark.parametrize(
    "name",
    ["optimizers.mtadam", "optimizers.ladatask_rmsprop", "aggregators.grad_drop"],
)
def test_transformation_passes_checkify_s_checks(name):
    tx = STAGES[name].build()
    checks = checkify.float_checks | checkify.index_checks
    step = checkify.checkify(lambda g: tx.update(g, tx.init(PARAMS)), errors=checks)
    error, _ = jax.jit(step)(GRADS)
    error.throw()


# The annotations of loops are those of traced ones, and here the indices are ints.
@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("name", some(CHECKED, {"by_norm"}))
def test_weighting_makes_no_nan_on_the_way(name):
    # Without jit every operation is a program, and is looked at as by the checks above.
    weighting = METHODS[name].make(K)
    products, state = _methods.products(METHODS[name], GRAMIAN), weighting.init(K)
    with jax.debug_nans(True), jax.disable_jit():
        weighting.update(products, state, losses=LOSSES)
