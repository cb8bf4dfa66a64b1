"""The gramian against float64, in every form it takes, and what it copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import _products, metrics

SHAPES = [(70_001,), (300, 300), (2, 3, 128, 128), (65_536,), (9, 7)]
TERMS = [2, 5, 10, 24]
# Of the product of the two lengths, in float32.
PROMISED = 2e-6


DEVICES = ["one device", "eight devices"]


@pytest.fixture(params=DEVICES)
def devices(request, monkeypatch):
    """The library slices leaves only where nothing can be sharded."""
    if request.param == "one device":
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    return request.param


def by_default(i, j, devices):
    """Each shape with two numbers of terms, each number with two or three shapes.

    The rest repeats them in other sizes, or is the same program on one device: only
    large leaves of 5 to 16 terms are sliced there.
    """
    sliced = 5 <= TERMS[j] <= 16 and np.prod(SHAPES[i]) >= 2**16
    return (i + j) % 2 == 0 and (sliced or devices == "eight devices")


each_leaf = pytest.mark.parametrize(
    ("devices", "shape", "terms"),
    [
        pytest.param(
            *(devices, shape, terms),
            marks=() if by_default(i, j, devices) else pytest.mark.slow,
        )
        for devices in DEVICES
        for i, shape in enumerate(SHAPES)
        for j, terms in enumerate(TERMS)
    ],
    indirect=["devices"],
)


def fresh_gramian():
    """Traced anew: JAX keeps what it traced by function and shape, on any devices."""
    return jax.jit(lambda rows: metrics.gramian(rows))


@functools.cache
def gradients(terms, shape, dtype=np.float32):
    rng = np.random.default_rng(terms)
    rows = rng.normal(size=(terms, *shape)) + rng.normal(size=shape)
    rows *= 10.0 ** rng.uniform(-3, 3, terms).reshape(-1, *(1,) * len(shape))
    return np.asarray(rows, dtype)


def assert_gramian(found, rows, tolerance):
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    expected = flat @ flat.T
    lengths = np.sqrt(np.diag(expected))
    apart = np.abs(np.asarray(found, np.float64) - expected)
    assert (apart / lengths / lengths[:, None]).max() < tolerance


@each_leaf
def test_digits_of_a_leaf(devices, terms, shape):
    rows = gradients(terms, shape)
    assert_gramian(fresh_gramian()(rows), rows, PROMISED)


def test_a_vector_of_many_terms_is_summed_in_blocks():
    # Measured: 1.4e-7 by blocks, and 1.5e-6 by one product of the whole vectors.
    rows = np.random.default_rng(0).uniform(0.5, 1, (12, 4096)).astype(np.float32)
    assert_gramian(fresh_gramian()(rows), rows, 4e-7)


def test_the_sums_of_many_slices_lose_no_digits(monkeypatch):
    # As many slices as a leaf of 51 million elements has. Measured: 6e-8, and 7e-7 by
    # plain addition.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(_products, "_SLICE", _products._BLOCK)
    rows = np.random.default_rng(0).uniform(0.5, 1, (6, 200_000)).astype(np.float32)
    assert_gramian(fresh_gramian()(rows), rows, 1.5e-7)


def test_the_two_forms_are_both_traced(monkeypatch):
    rows = jax.ShapeDtypeStruct((5, 70_001), jnp.float32)
    on_eight = fresh_gramian().lower(rows).as_text()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    on_one = fresh_gramian().lower(rows).as_text()
    assert "while" in on_one
    assert "while" not in on_eight


@each_leaf
def test_digits_of_leaves_that_are_not_stacked(devices, terms, shape):
    rows = gradients(terms, shape)
    find = jax.jit(lambda *rows: _products.gramian_of_rows(rows, num_terms=terms))
    assert_gramian(find(*rows), rows, PROMISED)


@pytest.mark.parametrize(
    ("devices", "terms"),
    [
        *(("eight devices", terms) for terms in (3, 6, 12)),
        *(("one device", terms) for terms in (6, 12)),
    ],
    indirect=["devices"],
)
def test_half_precision_is_accumulated_wide(devices, terms):
    rows = gradients(terms, (300, 300), jnp.bfloat16)
    found = fresh_gramian()(rows)
    assert found.dtype == jnp.float32
    assert_gramian(found, rows, PROMISED)


def test_double_precision(devices, x64):
    rows = gradients(6, (70_001,), np.float64)
    assert_gramian(fresh_gramian()(rows), rows, 1e-14)


@pytest.mark.parametrize("terms", [2, 10, 24])
@pytest.mark.parametrize("shape", [(1200, 1200), (1_440_007,), (3, 3, 400, 400)])
def test_no_copy_on_one_device(monkeypatch, terms, shape):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shapes = jax.ShapeDtypeStruct((terms, *shape), jnp.float32)
    compiled = fresh_gramian().lower(shapes).compile()
    copied = compiled.memory_analysis().temp_size_in_bytes
    assert copied <= 0.1 * 4 * terms * np.prod(shape)


@pytest.mark.parametrize("terms", [6, 16])
def test_no_copy_of_leaves_that_are_not_stacked(monkeypatch, terms):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    shapes = [jax.ShapeDtypeStruct((1200, 1200), jnp.float32)] * terms
    find = jax.jit(lambda *rows: _products.gramian_of_rows(rows, num_terms=terms))
    copied = find.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert copied <= 0.1 * 4 * terms * 1200 * 1200


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="older XLA makes all copies first"
)
@pytest.mark.parametrize("terms", [12, 64])
def test_copies_of_many_small_leaves_are_not_held_at_once(terms):
    one = 4 * terms * 200 * 200
    shapes = [jax.ShapeDtypeStruct((terms, 200, 200), jnp.float32)] * 25
    copied = fresh_gramian().lower(shapes).compile().memory_analysis()
    assert copied.temp_size_in_bytes <= 4 * one
