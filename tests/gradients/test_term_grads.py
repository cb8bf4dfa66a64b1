"""Losses and per-term gradients: K separate jax.grad calls, for less."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import term_grads, value_and_term_grads
from tests._asserts import (
    assert_close,
    assert_identical,
    assert_same_structure,
    assert_term_shapes,
    assert_zero,
)
from tests._params import some

PASSES = ["unroll", "vmap", "loop"]
# What stands before the passes is the same for all of them.
ONE_OF_THE_PASSES = some(PASSES, {"unroll"})


def make_params(dtype=np.float64):
    rng = np.random.default_rng(0)
    return {
        "a": np.asarray(rng.normal(size=(3, 2)), dtype),
        "rest": [np.asarray(0.7, dtype), None],
        "v": np.asarray([-1.0, 0.0, 1.0], dtype),
    }


def fit(p, x):
    return jnp.sum(jnp.tanh(x @ p["a"] + p["rest"][0]) ** 2)


def size(p, x):
    return jnp.sum(p["a"] ** 2) + p["rest"][0] ** 4


def pull(p, x):
    return jnp.sum(jnp.sin(p["v"]) * x[0]) * p["rest"][0]


SEPARATE = [fit, size, pull]
WEIGHTS = np.array([1.0, -2.0, 0.5])


@functools.cache
def compiled_for_the_three(sines):
    """K calls of jax.value_and_grad, for the three losses or their sines."""
    losses = [lambda p, x, f=f: jnp.sin(f(p, x)) for f in SEPARATE]
    losses = losses if sines else SEPARATE
    return jax.jit(lambda *args: [jax.value_and_grad(f)(*args) for f in losses])


def stacked(pairs):
    values = [value for value, _ in pairs]
    return values, jax.tree.map(lambda *g: np.stack(g), *(g for _, g in pairs))


def all_losses(p, x):
    return [loss(p, x) for loss in SEPARATE]


# Ways to return three losses, each with the factors it multiplies them by.
RETURNS = {
    "list": (lambda p, x: all_losses(p, x), 1),
    "tuple": (lambda p, x: tuple(all_losses(p, x)), 1),
    "dict": (lambda p, x: dict(zip("abc", all_losses(p, x), strict=True)), 1),
    "nested": (
        lambda p, x: {"a": fit(p, x), "b": (size(p, x), {"c": pull(p, x)})},
        1,
    ),
    "stack": (lambda p, x: jnp.stack(all_losses(p, x)), 1),
    "array": (lambda p, x: jnp.array(all_losses(p, x)), 1),
    "weighted stack": (lambda p, x: WEIGHTS * jnp.stack(all_losses(p, x)), WEIGHTS),
    "weighted from the right": (
        lambda p, x: jnp.array(all_losses(p, x)) * jnp.asarray(WEIGHTS),
        WEIGHTS,
    ),
    "weighted by a scalar": (lambda p, x: 3.0 * jnp.stack(all_losses(p, x)), 3),
    "negated": (lambda p, x: -jnp.stack(all_losses(p, x)), -1),
    "concatenated": (
        lambda p, x: jnp.concatenate(
            [jnp.stack([fit(p, x), size(p, x)]), pull(p, x)[None]]
        ),
        1,
    ),
    "weights computed": (
        lambda p, x: jnp.sum(x) * jnp.stack(all_losses(p, x)),
        "sum of x",
    ),
    "reversed twice": (lambda p, x: jnp.stack(all_losses(p, x)[::-1])[::-1], 1),
    "mapped": (lambda p, x: jax.vmap(jnp.sin)(jnp.stack(all_losses(p, x))), "sin"),
    "divided": (lambda p, x: jnp.stack(all_losses(p, x)) / 4, 0.25),
}


def expected_for(factors, params, x):
    sines = isinstance(factors, str) and factors == "sin"
    if sines:
        factors = 1
    elif isinstance(factors, str):
        factors = x.sum()
    factors = np.broadcast_to(factors, 3)
    values, grads = stacked(compiled_for_the_three(sines)(params, x))
    scaled = jax.tree.map(
        lambda g: g * factors.reshape(-1, *(1,) * (g.ndim - 1)), grads
    )
    return [f * np.asarray(v) for f, v in zip(factors, values, strict=True)], scaled


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(4, 3))


CASES = [(returns, None) for returns in RETURNS]
CASES += [(returns, passes) for returns in ("dict", "stack") for passes in PASSES]


@jax.jit
def found_in_every_case(params, x):
    """One program: what the cases have in common is compiled once."""
    return {
        (returns, str(passes)): value_and_term_grads(
            RETURNS[returns][0], passes=passes
        )(params, x)
        for returns, passes in CASES
    }


@pytest.mark.parametrize(("returns", "passes"), CASES)
def test_equals_separate_gradients(x64, x, returns, passes):
    losses_fn, factors = RETURNS[returns]
    params = make_params()
    losses, grads = found_in_every_case(params, x)[returns, str(passes)]
    values, expected = expected_for(factors, params, x)
    assert_same_structure(losses, jax.eval_shape(losses_fn, params, x))
    found = np.stack(jax.tree.leaves(losses)).reshape(-1)
    assert_close(found, np.stack(values), rtol=1e-13)
    assert_close(grads, expected, rtol=1e-13)
    assert_term_shapes(grads, params, 3)


def test_dict_terms_come_in_the_order_of_the_leaves(x64, x):
    params = make_params()
    losses, grads = jax.jit(
        value_and_term_grads(lambda p, x: {"z": fit(p, x), "a": size(p, x)})
    )(params, x)
    assert set(losses) == {"z", "a"}
    _, rows = stacked(compiled_for_the_three(sines=False)(params, x))
    expected = jax.tree.map(lambda g: g[[1, 0]], rows)
    assert_close(grads, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("shape", "passes"),
    [
        # Each shape once, and each way to pass.
        pytest.param(shape, passes, marks=[] if i == j else pytest.mark.slow)
        for i, shape in enumerate(["scalar", "vector", "dict"])
        for j, passes in enumerate(PASSES)
    ],
)
def test_one_term(x64, x, shape, passes):
    wrap = {
        "scalar": lambda v: v,
        "vector": lambda v: v[None],
        "dict": lambda v: {"a": v},
    }
    params = make_params()
    fn = value_and_term_grads(lambda p, x: wrap[shape](fit(p, x)), passes=passes)
    losses, grads = jax.jit(fn)(params, x)
    values, rows = stacked(compiled_for_the_three(sines=False)(params, x))
    expected = jax.tree.map(lambda g: g[:1], rows)
    assert_close(losses, wrap[shape](np.asarray(values[0])), rtol=1e-13)
    assert_close(grads, expected, rtol=1e-13)


@pytest.mark.parametrize("terms", [16, 17, pytest.param(40, marks=pytest.mark.slow)])
def test_beyond_sixteen_terms(x64, terms):
    w, powers = np.linspace(-1, 2, 5), np.arange(1, terms + 1)

    def as_array(w):
        return jnp.sum(jnp.sin(w)[None] * powers[:, None] ** 0.5, axis=1)

    def as_dict(w):
        return {f"{i:02d}": (i + 1) ** 0.5 * jnp.sum(jnp.sin(w)) for i in range(terms)}

    expected = np.sqrt(powers)[:, None] * np.cos(w)
    both = jax.jit(lambda w: (term_grads(as_array)(w), term_grads(as_dict)(w)))
    assert_close(both(w), (expected, expected), rtol=1e-13)


@pytest.mark.parametrize("passes", ONE_OF_THE_PASSES)
def test_argnums(x64, passes):
    def losses_fn(u, v, w):
        return jnp.stack([jnp.sum(u * v) * w, jnp.sum(v**3) - w])

    args = np.arange(3.0), np.arange(1.0, 4.0), np.asarray(2.0)
    cases = 0, 1, 2, -1, -3, (0, 2), (2, 0), (1,), [0, -1]

    @jax.jit
    def compared(*args):
        rows = [
            jax.grad(lambda *a, i=i: losses_fn(*a)[i], (0, 1, 2))(*args) for i in (0, 1)
        ]
        found = [term_grads(losses_fn, n, passes=passes)(*args) for n in cases]
        return rows, found

    rows, all_found = compared(*args)
    full = jax.tree.map(lambda *g: np.stack(g), *rows)
    for argnums, found in zip(cases, all_found, strict=True):
        if isinstance(argnums, int):
            expected = full[argnums]
        else:
            expected = tuple(full[i] for i in argnums)
        assert_close(found, expected, rtol=1e-13)


@pytest.mark.parametrize("passes", ONE_OF_THE_PASSES)
def test_aux_and_keyword_arguments(x64, x, passes):
    def losses_fn(p, x, *, power, flag):
        assert flag is True
        out = {"a": fit(p, x), "b": size(p, x) ** power}
        return out, {"hidden": x * 2, "name": "text"}

    options, kwargs = {"has_aux": True, "passes": passes}, {"power": 2, "flag": True}

    @jax.jit
    def compared(p, x):
        (losses, aux), grads = value_and_term_grads(losses_fn, **options)(
            p, x, **kwargs
        )
        assert set(losses) == {"a", "b"}
        assert aux["name"] == "text"
        only, other = term_grads(losses_fn, **options)(p, x, **kwargs)
        assert other["name"] == "text"
        return grads, aux["hidden"], only, other["hidden"]

    params = make_params()
    grads, hidden, only, other = compared(params, x)
    values, rows = stacked(compiled_for_the_three(sines=False)(params, x))
    square = 2 * np.asarray(values[1])
    expected = jax.tree.map(lambda g: np.stack([g[0], square * g[1]]), rows)
    assert_close(grads, expected, rtol=1e-13)
    assert_identical(hidden, x * 2)
    assert_identical(only, grads)
    assert_identical(other, x * 2)


@pytest.mark.parametrize(
    ("dtype", "passes"),
    [(jnp.bfloat16, passes) for passes in PASSES]
    + [
        pytest.param(dtype, passes, marks=pytest.mark.slow)
        for dtype in (jnp.float16, jnp.float32)
        for passes in PASSES
    ],
)
def test_gradients_keep_the_dtype_of_the_parameters(passes, dtype):
    params = make_params(dtype)
    batch = np.ones((4, 3), np.float32)

    def losses_fn(p, x):  # float32 losses of half-precision parameters
        wide = jax.tree.map(lambda v: v.astype(jnp.float32), p)
        return jnp.stack([fit(wide, x), size(wide, x), pull(wide, x)])

    fn = jax.jit(value_and_term_grads(losses_fn, passes=passes))
    losses, grads = fn(params, batch)
    assert losses.dtype == jnp.float32
    assert_term_shapes(grads, params, 3)
    wide = jax.tree.map(lambda v: v.astype(np.float32), params)
    _, expected = stacked(compiled_for_the_three(sines=False)(wide, batch))
    assert_close(grads, expected, rtol=2 * float(jnp.finfo(dtype).eps))


def test_losses_of_mixed_dtypes(x64):
    w = np.asarray(2.0, np.float64)
    fn = value_and_term_grads(
        lambda w: {"half": (w * 3).astype(jnp.bfloat16), "whole": w**2}
    )
    losses, grads = jax.jit(fn)(w)
    assert losses["half"].dtype == jnp.bfloat16
    assert_close(grads, np.array([3.0, 4.0]), rtol=1e-12)


def test_term_without_parameters_has_zero_gradient():
    def found(passes, form):
        losses_fn = lambda w, x: form([jnp.sum(w**2), jnp.sum(x), jnp.asarray(3.0)])  # noqa: E731
        return term_grads(losses_fn, passes=passes)

    every = [found(*case) for case in itertools.product(PASSES, (list, jnp.stack))]
    args = w, _ = np.arange(3, dtype=np.float32), np.ones(2, np.float32)
    outside_jit = every[0](*args)
    for grads in [outside_jit, *jax.jit(lambda *a: [fn(*a) for fn in every])(*args)]:
        assert_identical(np.asarray(grads)[0], 2 * w)
        assert_zero(np.asarray(grads)[1:])


def test_no_term_touches_the_parameters():
    losses_fn = lambda w: [jnp.asarray(1.0), jnp.asarray(2.0)]  # noqa: E731
    every = [term_grads(losses_fn, passes=passes) for passes in PASSES]
    for grads in jax.jit(lambda w: [fn(w) for fn in every])(np.ones(3, np.float32)):
        assert grads.shape == (2, 3)
        assert_zero(grads)


def test_wrapped_function_keeps_its_name():
    def my_losses(w):
        """Doc."""
        return [w]

    assert value_and_term_grads(my_losses).__name__ == "my_losses"
    assert term_grads(my_losses).__doc__ == "Doc."


def test_numpy_parameters_and_python_floats_are_parameters():
    grads = term_grads(lambda p: [p["w"] * 2, jnp.sum(p["v"]) * p["w"]])(
        {"w": 3.0, "v": np.ones(2, np.float32)}
    )
    assert_identical(grads["w"], np.array([2.0, 2.0]))
    assert_identical(grads["v"], np.array([[0.0, 0.0], [3.0, 3.0]]))


def test_outputs_keep_structure_of_parameters():
    params = {"a": (np.ones(2, np.float32), None), "b": []}
    grads = jax.eval_shape(term_grads(lambda p: [jnp.sum(p["a"][0])] * 2), params)
    assert_same_structure(grads, params)
    assert_term_shapes(grads, params, 2)
