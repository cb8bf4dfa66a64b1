"""K = 1 is the plain Optax optimizer.

Two arithmetic differences are known. Optax computes the bias correction 1 - b**t in
float32 even for float64 parameters, which alone is off by 3e-5 relative in the first
steps (b = 0.999); the library takes expm1 of a logarithm. Where both correct their
bias, the float64 comparison therefore uses decay rates that are exact in binary, for
which 1 - b**t is exact in float32 in the first steps, and the float32 comparison
states the bound 3e-5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import adatask, adatask_adam, adatask_rmsprop, mtadam
from tests._asserts import assert_close

EXACT = {"b1": 0.5, "b2": 0.75}  # powers of these to the 8th fit into 24 bits
STEPS = 8


def run(optimizer, grads, params, lead):
    """Updates of every step, the gradients with or without a term axis."""
    state, history = optimizer.init(params), []

    @jax.jit
    def step(grad, state, params):
        updates, state = optimizer.update(grad, state, params)
        return updates, state, optax.apply_updates(params, updates)

    for t in range(STEPS):
        grad = jax.tree.map(lambda g, t=t: g[t, None] if lead else g[t], grads)
        updates, state, params = step(grad, state, params)
        history.append(updates)
    return jax.tree.map(lambda *x: np.stack(x), *history)


def problem(dtype):
    rng = np.random.default_rng(3)
    params = {
        "w": jnp.asarray(rng.normal(size=(3, 2)), dtype),
        "b": jnp.ones((), dtype),
    }
    grads = {"w": rng.normal(size=(STEPS, 3, 2)), "b": 1e3 * rng.normal(size=STEPS)}
    return jax.tree.map(lambda g: g.astype(dtype), grads), params


PAIRS = {
    "mtadam": (
        lambda rates: mtadam(0.1, 1, **rates),
        lambda rates: optax.adam(0.1, **rates),
    ),
    "mtadam printed": (
        lambda rates: mtadam(0.1, 1, anchor=0, norm_init=1.0, **rates),
        lambda rates: optax.adam(0.1, **rates),
    ),
    "mtadam eps_root": (
        lambda rates: mtadam(0.1, 1, eps=0.01, eps_root=0.1, **rates),
        lambda rates: optax.adam(0.1, eps=0.01, eps_root=0.1, **rates),
    ),
    "mtadam weight_decay": (
        lambda rates: mtadam(0.1, 1, weight_decay=0.3, **rates),
        lambda rates: optax.adamw(0.1, weight_decay=0.3, **rates),
    ),
    "mtadam amsgrad": (
        lambda rates: mtadam(0.1, 1, amsgrad=True, **rates),
        lambda rates: optax.amsgrad(0.1, **rates),
    ),
    "mtadam schedule": (
        lambda rates: mtadam(optax.linear_schedule(1.0, 0.0, 5), 1, **rates),
        lambda rates: optax.adam(optax.linear_schedule(1.0, 0.0, 5), **rates),
    ),
    "adatask_adam": (
        lambda rates: adatask_adam(0.1, 1, **rates),
        lambda rates: optax.adam(0.1, **rates),
    ),
    "adatask_adam weight_decay": (
        lambda rates: adatask_adam(0.1, 1, weight_decay=0.3, **rates),
        lambda rates: optax.adamw(0.1, weight_decay=0.3, **rates),
    ),
}


# A schedule is float32 here too; compiled in haste, two programs round it in two ways.
@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("pair", PAIRS)
def test_double_precision(x64, pair):
    ours, optax_own = PAIRS[pair]
    grads, params = problem(jnp.float64)
    found = run(ours(EXACT), grads, params, True)
    expected = run(optax_own(EXACT), grads, params, False)
    assert_close(found, expected, rtol=1e-12)


PLAIN = {"mtadam", "adatask_adam"}


# In float64 all variants are compared, and to more digits.
@pytest.mark.parametrize(
    "pair",
    [pytest.param(p, marks=[] if p in PLAIN else pytest.mark.slow) for p in PAIRS],
)
def test_single_precision_with_the_default_rates(pair):
    ours, optax_own = PAIRS[pair]
    grads, params = problem(jnp.float32)
    found = run(ours({}), grads, params, True)
    expected = run(optax_own({}), grads, params, False)
    assert_close(found, expected, rtol=3e-5)


INNERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "rmsprop": optax.rmsprop(0.1, decay=0.99, momentum=0.5),
    "lion": optax.lion(0.1, weight_decay=0.1),
    "clipped adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "schedule": optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    "partition": optax.partition(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}
    ),
}


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize(
    "double",
    [
        pytest.param(True, id="float64"),
        pytest.param(False, id="float32", marks=pytest.mark.slow),
    ],
)
def test_adatask_of_one_term_is_the_inner_optimizer(inner, double):
    with jax.enable_x64(double):
        grads, params = problem(jnp.float64 if double else jnp.float32)
        found = run(adatask(INNERS[inner], 1), grads, params, True)
        expected = run(INNERS[inner], grads, params, False)
        assert_close(found, expected, rtol=1e-12 if double else 1e-6)


def test_rmsprop(x64):
    grads, params = problem(jnp.float64)
    for inside in (False, True):
        found = run(adatask_rmsprop(0.1, 1, eps_in_sqrt=inside), grads, params, True)
        other = optax.rmsprop(0.1, decay=0.99, eps=1e-8, eps_in_sqrt=inside)
        assert_close(found, run(other, grads, params, False), rtol=1e-12)
