"""Half precision, and float32 from 1e-18 to 1e18.

What docs/precision.md says is asserted here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests import _factories, _methods
from tests._asserts import (
    assert_close,
    assert_finite,
    assert_zero,
    named_leaves,
)
from tests._magnitudes import (
    CANCELLING,
    CASES,
    SHAPES,
    K,
    deviation,
    sized,
    unit_grads,
    unit_losses,
)
from tests._params import some
from tests._runs import all_steps

HALF = ["bfloat16", "float16"]


# Stages and optimizers around what has no state and no precision of its own.
def _build(factory):
    inner = optax.scale(-0.5)
    return factory.build(inner=inner, num_terms=K)


STAGES = {
    factory.name: functools.partial(_build, factory)
    for factory in _factories.factories()
    if factory.stage in ("transforms", "aggregators", "optimizers")
}
KEEP_TERMS = {f.name for f in _factories.factories() if f.keeps_terms}


def _weighted(name):
    return mt.weighted(_methods.build(name, K), optax.scale(-0.5), K)


WEIGHTINGS = {name: functools.partial(_weighted, name) for name in _methods.factories()}
MAKE = {**STAGES, **WEIGHTINGS}


# How a weighting is applied is the stage's matter, and tried with one of each kind; the
# weights of all are compared in tests/weightings/test_contract.py.
APPLIED = [
    *(pytest.param(name) for name in STAGES if name != "grad_drop"),
    *some(WEIGHTINGS, _methods.REPRESENTATIVE - {"cagrad", "compose"}),
]


@functools.cache
def compiled(name, dtype):
    """The steps of a transformation as one program: (grads, losses) -> updates, state.

    ``dtype`` is that of the parameters; float64 needs ``jax.enable_x64``.
    """
    tx = MAKE[name]()

    def run(*steps):
        params = {leaf: jnp.zeros(shape, dtype) for leaf, shape in SHAPES.items()}

        def step(state, data):
            grads, losses = data
            updates, state = tx.update(grads, state, params, losses=losses)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(params), steps)
        return updates, state

    return jax.jit(run)


def run(name, dtype, grads, losses):
    """As float64 NumPy arrays: the updates and the state."""
    with jax.enable_x64(dtype == "float64"):
        data = rounded((grads, losses), dtype)
        return jax.tree.map(np.asarray, compiled(name, dtype)(*data))


def rounded(tree, dtype):
    """The nearest numbers of ``dtype``, in NumPy."""
    return jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), tree)


# Half precision.

# Sizes of the gradients: squares overflow float16, or vanish in it.
SIZES = {"large": 300.0, "small": 1e-3}

# A weighting sees float32 in any case; these stand for the ways to apply one.
HALF_NAMES = [*STAGES, "mgda", "pcgrad", "softadapt"]


# A weighting never sees the parameters: one dtype of theirs is enough.
@pytest.mark.parametrize(
    ("dtype", "name"),
    [*(("bfloat16", name) for name in MAKE), *(("float16", name) for name in STAGES)],
)
def test_statistics_are_kept_in_float32(name, dtype):
    params = rounded({name: np.zeros(shape) for name, shape in SHAPES.items()}, dtype)
    for path, leaf in named_leaves(jax.eval_shape(MAKE[name]().init, params)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            expected = dtype if ".mu[" in path else jnp.float32
            assert leaf.dtype == expected, f"{path}: {leaf.dtype}"


# Squares overflow in float16 and vanish in it, so that all are run in that dtype. What
# computes in float32 whatever the gradients are, or like another, is run in one only.
IN_BFLOAT16 = {"balance_by_norm", "mgda", "mtadam"}


def by_default(dtype, name):
    if dtype == "bfloat16":
        return name in IN_BFLOAT16
    return name != "mgda"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        pytest.param(
            *(dtype, name),
            marks=() if by_default(dtype, name) else pytest.mark.slow,
        )
        for dtype in HALF
        for name in HALF_NAMES
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_a_step_is_the_step_in_float32_rounded(name, dtype, size):
    grads = rounded(jax.tree.map(lambda g: SIZES[size] * g, unit_grads()), dtype)
    losses = rounded(unit_losses(), dtype)
    narrow, _ = run(name, dtype, grads, losses)
    wide, _ = run(name, "float32", grads, losses)
    assert all(update.dtype == dtype for update in narrow.values())
    assert_finite(narrow)
    # Half a unit in the last place for each of a chain's stages.
    assert_close(narrow, wide, rtol=2 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", STAGES)
def test_zero_gradients_take_no_step_in_float16(name):
    grads, losses = rounded((unit_grads(), unit_losses()), "float16")
    for later in grads.values():
        later[1:] = 0
    assert_finite(run(name, "float16", grads, losses))
    nothing = jax.tree.map(np.zeros_like, grads)
    updates, state = run(name, "float16", nothing, losses)
    assert_zero(updates)
    assert_finite(state)


WITH_MU = {
    "scale_by_max_adam": lambda dtype: mt.scale_by_max_adam(2, mu_dtype=dtype),
    "mtadam": lambda dtype: mt.mtadam(0.1, 2, mu_dtype=dtype),
    "adatask_adam": lambda dtype: mt.adatask_adam(0.1, 2, mu_dtype=dtype),
}


@pytest.mark.parametrize("name", WITH_MU)
@pytest.mark.parametrize("dtype", HALF)
def test_mu_dtype_is_that_of_the_first_moment_alone(name, dtype):
    params = np.zeros(5, np.float32)
    wide = jax.eval_shape(WITH_MU[name](None).init, params)
    for given in (dtype, jnp.dtype(dtype)):
        tx = WITH_MU[name](given)
        state = jax.eval_shape(tx.init, params)
        grads = np.ones((2, 5), np.float32)
        updates, state = jax.eval_shape(tx.update, grads, state, params)
        assert updates.dtype == jnp.float32
        saved = 0
        for (path, found), (_, before) in zip(
            named_leaves(state), named_leaves(wide), strict=True
        ):
            assert found.dtype == (dtype if path.endswith(".mu") else before.dtype)
            saved += before.size * (before.dtype.itemsize - found.dtype.itemsize)
        copies = 2 if name == "adatask_adam" else 1
        assert saved == copies * 5 * 2


@pytest.mark.parametrize("name", WITH_MU)
def test_mu_dtype_float32_keeps_the_digits_of_half_precision(name):
    # Of these gradients a first moment in float16 would keep three digits at most.
    rng = np.random.default_rng(0)
    grads = np.asarray(1e-5 * (1 + rng.uniform(size=(50, 2, 5))), np.float16)
    tx = WITH_MU[name]("float32")
    narrow, _ = all_steps(tx, grads, np.zeros(5, np.float16))
    wide, _ = all_steps(tx, grads.astype(np.float32), np.zeros(5, np.float32))
    assert narrow.dtype == jnp.float16
    eps = float(jnp.finfo(jnp.float16).eps)
    # MTAdam's balanced gradients are rounded on their way to the moments, and those
    # of this size are multiples of 6e-8.
    rounding = 6e-8 / 1e-5 if name == "mtadam" else 0
    assert_close(narrow, wide, rtol=2 * eps + rounding)


@pytest.mark.parametrize("name", _methods.factories())
@pytest.mark.parametrize("dtype", HALF)
def test_losses_in_half_precision_are_read_in_float32(name, dtype):
    """The first thing that is computed from them is their value in float32."""
    weighting = _methods.build(name, K)
    if not weighting.reads_losses:
        pytest.skip("it reads no losses")

    def step(losses):
        return weighting.update(jnp.eye(K), weighting.init(K), losses=losses)

    traced = jax.make_jaxpr(step)(jnp.ones(K, dtype))
    assert traced.out_avals[0].dtype == jnp.float32
    short = {"bfloat16": ":bf16[", "float16": ":f16["}[dtype]
    results = [line.partition(" = ")[0] for line in str(traced).splitlines()]
    assert sum(short in names for names in results) == 1, "only the argument is narrow"


# Single precision.

# Weights on the simplex come from differences: they are known to a rounding of 1, and
# not to their own last digits. The gradient that they scale is the measure. SDMGrad's
# rounds are so long that they multiply a rounding, and the last one may be anywhere.
DESCENDING = {"moco": 1e-6, "modo": 1e-6, "sdmgrad": 1e-3}


def reads_dot_products(name):
    if name in _methods.factories():
        return _methods.build(name, K).reads_gramian
    return name in {"adaptive_mgda", *DESCENDING}


def digits_of(name, case):
    if not reads_dot_products(name):
        return 1e-6
    declared = _methods.methods().get(name)
    digits = declared.digits if declared else DESCENDING.get(name, 1e-6)
    return 1e-2 if case in CANCELLING else digits


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("case", CASES)
def test_thirty_six_orders_of_magnitude(name, case):
    grads, losses = sized(case)
    found, state = run(name, "float32", grads, losses)
    expected, _ = run(name, "float64", grads, losses)
    assert_finite(found)
    assert_finite(state)
    measure = grads if name in DESCENDING else expected
    gap = deviation(found, expected, name in KEEP_TERMS, measure)
    assert gap <= digits_of(name, case)


@pytest.mark.parametrize("case", CASES)
def test_grad_drop_over_thirty_six_orders_of_magnitude(case):
    grads, losses = sized(case)
    found, _ = run("grad_drop", "float32", grads, losses)
    for leaf, grad in grads.items():
        wide = np.float64(grad)
        positive = np.maximum(wide, 0).sum(axis=1)
        negative = np.minimum(wide, 0).sum(axis=1)
        drawn = np.where(found[leaf] > 0, positive, negative)
        np.testing.assert_allclose(found[leaf], drawn, rtol=1e-6)


@functools.cache
def mgda_of(terms):
    tx = mt.weighted(mt.mgda(), optax.scale(1.0), terms)
    return tx.init(np.zeros(3, np.float32)), jax.jit(tx.update)


# The opposite of the shorter gradient's part along the longer one must come to the last
# digit from a weight as small as the ratio of their lengths.
@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6, 1e9, 1e18])
@pytest.mark.parametrize("terms", [2, 3])
def test_mgda_conflicts_with_no_term_however_long(ratio, terms):
    rows = np.array([[1, 0, 0], [-0.6 * ratio, 0.8 * ratio, 0], [0, 0, 1]], np.float32)
    rows = rows[:terms]
    state, update = mgda_of(terms)
    found, _ = update(rows, state)
    direction, lengths = np.float64(found), np.linalg.norm(np.float64(rows), axis=1)
    cosines = rows @ direction / lengths / np.linalg.norm(direction)
    assert cosines.min() >= -1e-6
