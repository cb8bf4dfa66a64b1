"""Traces of the neural tangent kernel against whole Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import ntk_traces
from tests._asserts import assert_message
from tests.references import grad_norm_balance as reference


def parameters(dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = {"w": (2, 4), "b": (4,), "out": (4,)}
    return {name: np.asarray(rng.normal(size=s), dtype) for name, s in shapes.items()}


def residuals_fn(params, x, *, scale=1.0):
    def u(x):
        return jnp.tanh(x @ params["w"] + params["b"]) @ params["out"]

    slopes = jax.vmap(jax.grad(u))(x)
    return {
        "equation": slopes.sum(axis=1) - u(x),
        "slopes": scale * slopes[:3],  # two numbers a point
        "start": u(x[0]),
    }


JACOBIANS = jax.jit(jax.jacrev(residuals_fn))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch_size", [None, 2])
def test_are_the_mean_squares_of_the_jacobians_rows(batch_size, record_deviation):
    params = parameters()
    x = np.random.default_rng(1).normal(size=(7, 2))
    traces = jax.jit(ntk_traces(residuals_fn, batch_size=batch_size))
    found = np.asarray(traces(params, x, scale=3.0))
    jacobians = JACOBIANS(params, x, scale=3.0)
    sizes = {"equation": 7, "slopes": 6, "start": 1}
    flat = [
        np.concatenate(
            [
                np.asarray(leaf).reshape(sizes[name], -1)
                for leaf in jacobians[name].values()
            ],
            axis=1,
        )
        for name in sizes
    ]
    expected = reference.traces(flat)
    record_deviation("ntk_traces", np.max(np.abs(found / expected - 1)))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_squares_are_summed_in_float32(dtype):
    params = np.full(3, 2.0, jnp.dtype(dtype))
    found = jax.jit(ntk_traces(lambda w: [300 * w[:1] * w[1], w[2]]))(params)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [2 * 600.0**2, 1.0], rtol=1e-2)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ntk_traces(1.0), TypeError, ["residuals_fn must be a function"]),
        (
            lambda: ntk_traces(lambda w: w, batch_size=0),
            ValueError,
            ["batch_size", "at least 1", "0"],
        ),
        (
            lambda: ntk_traces(lambda w: {"a": w, "b": w[:0]})(jnp.ones(2)),
            ValueError,
            ["residuals['b']", "at least one row", "(0,)"],
        ),
        (
            lambda: ntk_traces(lambda w: {})(jnp.ones(2)),
            ValueError,
            ["at least one term", "found none"],
        ),
        (
            lambda: ntk_traces(lambda w: [w])(jnp.ones(2, int)),
            TypeError,
            ["params", "to be differentiated", "int"],
        ),
        (
            lambda: ntk_traces(lambda w: [w, 1j * w])(jnp.ones(2)),
            TypeError,
            ["residuals[1]", "real floating point", "complex64"],
        ),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert_message(caught.value, "ntk_traces: ", *words)
