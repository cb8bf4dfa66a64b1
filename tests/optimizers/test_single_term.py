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


def assert_equal_steps(ours, theirs, dtype, rtol):
    """The updates of every step, ours with a term axis, in one program."""

    def both(carry, grad):
        (one, params), (other, their_params) = carry
        lifted = jax.tree.map(lambda g: g[None], grad)
        found, one = ours.update(lifted, one, params)
        expected, other = theirs.update(grad, other, their_params)
        params = optax.apply_updates(params, found)
        their_params = optax.apply_updates(their_params, expected)
        return ((one, params), (other, their_params)), (found, expected)

    @jax.jit
    def run(grads, params):
        start = (ours.init(params), params), (theirs.init(params), params)
        return jax.lax.scan(both, start, grads)[1]

    found, expected = run(*problem(dtype))
    assert_close(found, expected, rtol=rtol)


def problem(dtype):
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(3, 2)), "b": np.ones(())}
    grads = {"w": rng.normal(size=(STEPS, 3, 2)), "b": 1e3 * rng.normal(size=STEPS)}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (grads, params))


SCHEDULE = optax.linear_schedule(1.0, 0.0, 4)  # exact in float32
# Numbers that Adam and AdamW know, all of them other than their defaults.
NUMBERS = {"eps": 0.01, "eps_root": 0.1}
PAIRS = {
    "mtadam": (
        lambda rates: mtadam(0.1, 1, **rates),
        lambda rates: optax.adam(0.1, **rates),
    ),
    "mtadam printed": (
        lambda rates: mtadam(0.1, 1, anchor=0, norm_init=1.0, **rates),
        lambda rates: optax.adam(0.1, **rates),
    ),
    "mtadam eps weight_decay schedule": (
        lambda rates: mtadam(SCHEDULE, 1, weight_decay=0.3, **NUMBERS, **rates),
        lambda rates: optax.adamw(SCHEDULE, weight_decay=0.3, **NUMBERS, **rates),
    ),
    "mtadam amsgrad": (
        lambda rates: mtadam(0.1, 1, amsgrad=True, **NUMBERS, **rates),
        lambda rates: optax.amsgrad(0.1, **NUMBERS, **rates),
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


@pytest.mark.parametrize("pair", PAIRS)
def test_double_precision(x64, pair):
    ours, theirs = PAIRS[pair]
    assert_equal_steps(ours(EXACT), theirs(EXACT), jnp.float64, rtol=1e-12)


PLAIN = {"mtadam", "adatask_adam"}


# In float64 all variants are compared, and to more digits.
@pytest.mark.parametrize(
    "pair",
    [pytest.param(p, marks=[] if p in PLAIN else pytest.mark.slow) for p in PAIRS],
)
def test_single_precision_with_the_default_rates(pair):
    ours, theirs = PAIRS[pair]
    assert_equal_steps(ours({}), theirs({}), jnp.float32, rtol=3e-5)


INNERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "rmsprop": optax.rmsprop(0.1, decay=0.99, momentum=0.5),
    "lion": optax.lion(0.1, weight_decay=0.1),
    "clipped adam": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    ),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "partition": optax.partition(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}
    ),
}


# Element by element, or across leaves, a leaf's rows and groups of leaves.
KINDS = {"momentum", "clipped adam", "adafactor", "partition"}


@pytest.mark.parametrize(
    ("inner", "double"),
    [
        pytest.param(
            *(inner, double),
            marks=[] if double and inner in KINDS else pytest.mark.slow,
            id=f"{inner}-{'float64' if double else 'float32'}",
        )
        for inner in INNERS
        for double in (True, False)
    ],
)
def test_adatask_of_one_term_is_the_inner_optimizer(inner, double):
    with jax.enable_x64(double):
        dtype, rtol = (jnp.float64, 1e-12) if double else (jnp.float32, 1e-6)
        assert_equal_steps(adatask(INNERS[inner], 1), INNERS[inner], dtype, rtol)


@pytest.mark.parametrize("inside", [False, True])
def test_rmsprop(x64, inside):
    ours = adatask_rmsprop(0.1, 1, eps_in_sqrt=inside)
    theirs = optax.rmsprop(0.1, decay=0.99, eps=1e-8, eps_in_sqrt=inside)
    assert_equal_steps(ours, theirs, jnp.float64, rtol=1e-12)
