"""Per-term gradients of terms with their own rows: the same numbers, for less."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from multiterm_optax import value_and_row_grads, value_and_term_grads
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_finite,
    assert_message,
    assert_single_trace,
    assert_term_shapes,
    assert_zero,
)

PASSES = ["unroll", "vmap", "loop"]
LOOP = [*(pytest.param(p, marks=pytest.mark.slow) for p in PASSES[:2]), "loop"]
TERMS = 3  # few: the unrolled passes, 2 K - 1, are compiled one by one
# How 12 rows may fall to three terms.
SPLITS = {
    "equal": np.arange(12) % 3,
    "uneven": np.array([2, 0, 0, 2, 0, 2, 0, 1, 0, 2, 0, 0]),
    "missing": np.array([2, 0, 0, 2, 0, 0, 2, 2, 0, 2, 2, 2]),
    "all to one": np.full(12, 2),
    "some to none": np.array([-1, 0, -1, 2, 2, 2, 2, 2, 2, 2, -7, 1]),
}


def make_params(dtype=np.float64):
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(3, 5)).astype(dtype),
        "b": rng.normal(size=5).astype(dtype),
        "scale": np.asarray(0.7, dtype),
    }


def make_rows(count=12, dtype=np.float64):
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(count, 3)).astype(dtype),
        "y": rng.normal(size=count).astype(dtype),
    }


def row_losses(params, rows, power=2):
    hidden = jnp.tanh(rows["x"] @ params["w"] + params["b"])
    return (params["scale"] * hidden.sum(axis=1) - rows["y"]) ** power


def term_losses(params, rows, row_terms, weights):
    """The same losses as means over the whole batch."""
    owners = (row_terms == jnp.arange(TERMS)[:, None]) * weights
    sums = owners @ row_losses(params, rows)
    return sums / jnp.where(owners.sum(axis=1) > 0, owners.sum(axis=1), 1)


of_masked_losses = jax.jit(value_and_term_grads(term_losses))


def masked(params, rows, row_terms, weights=None):
    """Their means and gradients; rows of no term fill up what one program takes."""
    more = 13 - len(row_terms)
    x, y = np.pad(rows["x"], [(0, more), (0, 0)]), np.pad(rows["y"], (0, more))
    weights = np.ones(len(row_terms)) if weights is None else weights
    owners = np.pad(row_terms, (0, more), constant_values=-1)
    weights = np.pad(weights, (0, more))
    return of_masked_losses(params, {"x": x, "y": y}, owners, weights)


@functools.cache
def row_grads(**options):
    """Compiled, and shared by the tests that call it with arrays of the same shapes."""
    return jax.jit(value_and_row_grads(row_losses, TERMS, **options))


def rows_of(tree, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


@pytest.mark.parametrize("passes", PASSES)
def test_equals_the_gradients_of_masked_losses(x64, passes):
    params, rows = make_params(), make_rows()
    fn = row_grads(passes=passes)
    for row_terms in SPLITS.values():
        losses, grads = fn(params, rows, row_terms)
        expected = masked(params, rows, row_terms)
        assert_close((losses, grads), expected, rtol=1e-12)
        assert_term_shapes(grads, params, TERMS)
        for term in set(range(TERMS)) - set(row_terms):
            assert_zero(rows_of((losses, grads), term))


# The plan is that of all passes; a loop is compiled faster than unrolled passes.
@pytest.mark.parametrize(
    ("count", "passes"),
    [
        (1, "unroll"),
        (13, "loop"),
        pytest.param(2, "loop", marks=pytest.mark.slow),
        pytest.param(5, "unroll", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_rows_in_any_split(x64, count, passes):
    params, rows = make_params(), make_rows(count)
    fn = row_grads(passes=passes)
    rng = np.random.default_rng(count)
    for concentration in (0.1, 1.0, 10.0):
        shares = rng.dirichlet(np.full(TERMS, concentration))
        row_terms = rng.choice(TERMS, size=count, p=shares)
        expected = masked(params, rows, row_terms)
        assert_close(fn(params, rows, row_terms), expected, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_row_weights(x64, reduction):
    params, rows, row_terms = make_params(), make_rows(), SPLITS["uneven"]
    weights = np.random.default_rng(2).uniform(0.1, 3.0, size=12)
    weights[[1, 7]] = 0  # the second is the only row of its term
    fn = row_grads(reduction=reduction, passes="loop")
    found = fn(params, rows, row_terms, row_weights=weights)
    expected = masked(params, rows, row_terms, weights)
    if reduction == "sum":
        totals = np.bincount(row_terms, weights)
        expected = jax.tree.map(lambda v: (totals * np.asarray(v).T).T, expected)
    assert_close(found, expected, rtol=1e-12)
    assert_zero(rows_of(found, 1))


def test_further_arguments_are_passed_on_whole(x64):
    params, rows, row_terms = make_params(), make_rows(), SPLITS["equal"]

    def scaled(params, rows, factors, *, power):
        assert factors.shape == (9,)
        return factors.sum() * row_losses(params, rows, power - 2)

    fn = value_and_row_grads(scaled, TERMS, passes="loop")
    found = jax.jit(fn, static_argnames="power")(
        params, rows, row_terms, np.ones(9), power=4
    )
    whole = row_grads(passes="loop")(params, rows, row_terms)
    assert_close(found, jax.tree.map(lambda v: 9 * np.asarray(v), whole), rtol=1e-13)


@pytest.mark.parametrize("passes", [*LOOP[1:], "unroll"])
def test_what_is_not_finite_stays_with_its_term(passes):
    # The gradient of sqrt at 0 is infinite; 0 * inf is NaN where rows are masked.
    def losses(w, x):
        return jnp.sqrt(w * x)

    x, row_terms = np.float32([0, 1, 4, 9]), np.array([0, 1, 1, 1])
    w, ones = np.float32(1), np.ones(4, np.float32)
    fn = jax.jit(value_and_row_grads(losses, 3, passes=passes))
    values, grads = jax.tree.map(np.asarray, fn(w, x, row_terms, row_weights=ones))
    assert not np.isfinite(grads[0])
    np.testing.assert_allclose(grads[1:], [1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(values, [0.0, 2.0, 0.0], rtol=1e-6)
    # Nor does a row that belongs to no term, or has no weight.
    for number, weight in ((-1, 0), (0, 0)):
        row_terms[0], ones[0] = number, weight
        found = fn(w, x, row_terms, row_weights=ones)
        assert_finite(found)
        assert_zero(rows_of(found, 0))


@pytest.mark.parametrize("passes", LOOP)
def test_capacity(x64, passes):
    params, rows = make_params(), make_rows()
    fn = row_grads(capacity=4, passes=passes)
    equal = SPLITS["equal"]
    expected = masked(params, rows, equal)
    assert_close(fn(params, rows, equal), expected, rtol=1e-12)
    # Term 0 has a row too many: it is NaN, and the others are what they were.
    over = equal.copy()
    over[1] = 0
    found, expected = fn(params, rows, over), masked(params, rows, over)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(rows_of(found, 0)))
    rest = slice(1, None)
    assert_close(rows_of(found, rest), rows_of(expected, rest), rtol=1e-12)


def test_a_number_that_names_no_term_is_not_lost_silently(x64):
    params, rows = make_params(), make_rows()
    wrong = SPLITS["equal"].copy()
    wrong[5] = TERMS
    losses, grads = row_grads(passes="unroll")(params, rows, wrong)
    assert np.isnan(losses).all()
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


def test_many_terms(x64):
    params, rows = make_params(), make_rows(40)
    row_terms = np.random.default_rng(0).integers(0, 20, size=40)
    fn = jax.jit(value_and_row_grads(row_losses, 20))
    losses, grads = fn(params, rows, row_terms)

    @jax.jit
    def whole_batch(params, rows):
        every, pullback = jax.vjp(lambda p: row_losses(p, rows), params)
        return every, pullback(jnp.ones_like(every))[0]

    every, whole = jax.tree.map(np.asarray, whole_batch(params, rows))
    for term in range(20):
        own = every[row_terms == term]
        mean = own.mean() if own.size else 0.0
        np.testing.assert_allclose(losses[term], mean, rtol=1e-12)
    # Their gradients together are that of the whole batch.
    sizes = np.bincount(row_terms, minlength=20)
    total = jax.tree.map(lambda g: np.tensordot(sizes, g, 1), grads)
    assert_close(total, whole, rtol=1e-12)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gradients_keep_the_dtype_of_the_parameters(dtype, passes):
    params, rows = make_params(dtype), make_rows(dtype=dtype)
    fn = value_and_row_grads(row_losses, TERMS, passes=passes)
    losses, grads = jax.eval_shape(fn, params, rows, SPLITS["uneven"])
    assert losses.dtype == dtype
    assert_term_shapes(grads, params, TERMS)


@pytest.mark.parametrize("passes", PASSES)
def test_traced_once_over_many_steps(passes):
    params, rows = make_params(jnp.float32), make_rows(dtype=jnp.float32)
    counted = CountedTraces(row_losses)
    step = jax.jit(value_and_row_grads(lambda *a: counted(*a), TERMS, passes=passes))
    for split in SPLITS.values():
        step.eval_shape(params, rows, split)
    assert_single_trace(counted)


# --- what it costs. Flops are XLA's own count, of programs that are not compiled --


def flops(fn, *args):
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def network():
    shapes = [(64, 256), (256, 256), (256, 10)]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    rows = (
        jax.ShapeDtypeStruct((80, 64), jnp.float32),
        jax.ShapeDtypeStruct((80,), jnp.int32),
    )

    def losses(params, rows):
        x, labels = rows
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return optax.softmax_cross_entropy_with_integer_labels(x @ params[-1], labels)

    return losses, params, rows


@pytest.mark.parametrize(
    ("capacity", "factor"),
    # Equal rows: each is used once. No promise: at most twice.
    [(8, 1.3), (None, 2.6)],
)
def test_ten_gradients_for_about_one_pass(capacity, factor):
    losses, params, rows = network()

    def one_pass(params, rows):
        return jax.value_and_grad(lambda p: losses(p, rows).mean())(params)

    fn = value_and_row_grads(losses, 10, capacity=capacity)
    found = flops(fn, params, rows, rows[1])
    assert found <= factor * flops(one_pass, params, rows)


def test_rows_stacked_by_term_need_no_sorting():
    # The recipe of docs/rows.md: K losses, each of its own slice of [K, n, ...].
    losses, params, (x, labels) = network()
    batch = (
        jax.ShapeDtypeStruct((10, 8, *x.shape[1:]), x.dtype),
        jax.ShapeDtypeStruct((10, 8), labels.dtype),
    )

    def losses_fn(params, batch):
        slices = [jax.tree.map(lambda leaf, k=k: leaf[k], batch) for k in range(10)]
        return jnp.stack([losses(params, rows).mean() for rows in slices])

    def one_pass(params, rows):
        return jax.value_and_grad(lambda p: losses(p, rows).mean())(params)

    found = flops(value_and_term_grads(losses_fn), params, batch)
    assert found <= 1.3 * flops(one_pass, params, (x, labels))


# --- bad input ------------------------------------------------------------------


def call(row_terms=None, rows=None, params=None, fn=row_losses, weights=None, **kw):
    params = make_params(jnp.float32) if params is None else params
    rows = make_rows(dtype=jnp.float32) if rows is None else rows
    row_terms = SPLITS["equal"] if row_terms is None else row_terms
    apply = value_and_row_grads(fn, kw.pop("num_terms", TERMS), **kw)
    # The arrays are known to it, but nothing is computed: errors come before that.
    return jax.eval_shape(lambda: apply(params, rows, row_terms, row_weights=weights))


BAD = {
    "labels 2d": (
        {"row_terms": np.zeros((3, 4), int)},
        ValueError,
        ["row_terms", "(B,)", "(3, 4)"],
    ),
    "labels float": ({"row_terms": np.zeros(12)}, TypeError, ["row_terms", "float"]),
    "rows": (
        {"rows": {"x": np.zeros((11, 3)), "y": np.zeros(12)}},
        ValueError,
        ["rows['x']", "12 rows", "(11, 3)"],
    ),
    "weights": ({"weights": np.ones(3)}, ValueError, ["row_weights", "(12,)", "(3,)"]),
    "mean loss": (
        {"fn": lambda p, r: row_losses(p, r).mean()},
        ValueError,
        ["one loss for each row", "(4,)", "()"],
    ),
    "integer loss": (
        {"fn": lambda p, r: jnp.zeros(len(r["y"]), int)},
        TypeError,
        ["row_losses_fn", "int"],
    ),
    "integer parameter": (
        {"params": {**make_params(jnp.float32), "b": np.zeros(5, int)}},
        TypeError,
        ["params['b']", "int"],
    ),
    "capacity": ({"capacity": 0}, ValueError, ["capacity", "at least 1", "0"]),
    "reduction": ({"reduction": "max"}, ValueError, ["reduction", "'mean'", "'max'"]),
    "passes": ({"passes": "scan"}, ValueError, ["passes", "'unroll'", "'scan'"]),
    "num_terms": ({"num_terms": 0}, ValueError, ["num_terms", "at least 1"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(own_errors, case):
    kwargs, error, words = BAD[case]
    with pytest.raises(error) as info:
        call(**kwargs)
    assert_message(info.value, "value_and_row_grads", *words)


def test_wrapped_function_keeps_its_name():
    assert value_and_row_grads(row_losses, 2).__name__ == "row_losses"


@pytest.mark.slow  # The docstring's example runs outside jit, too.
def test_eager_equals_jitted(x64):
    # A loop, whose body is one program: outside jit each operation else is one.
    fn = value_and_row_grads(row_losses, TERMS, passes="loop")
    jitted = row_grads(passes="loop")
    args = make_params(), make_rows(), SPLITS["uneven"]
    assert_close(fn(*args), jitted(*args), rtol=1e-12)


@pytest.fixture
def under_jit(monkeypatch):
    """What the library makes is jitted: outside jit each operation is a program."""

    def jitted(factory):
        return lambda *args, **options: jax.jit(factory(*args, **options))

    for name in ("value_and_row_grads", "value_and_term_grads"):
        monkeypatch.setattr(mt, name, jitted(getattr(mt, name)))
    make = mt.mtadam

    def with_jitted_update(*args, **options):
        tx = make(*args, **options)
        return tx._replace(update=jax.jit(tx.update))

    monkeypatch.setattr(mt, "mtadam", with_jitted_update)


@pytest.mark.slow
@pytest.mark.usefixtures("under_jit")
def test_the_page_of_the_documentation_runs():
    page = Path(__file__).resolve().parents[2] / "docs" / "rows.md"
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)
    params, rows = names["params"], (names["x"], names["labels"])
    found = names["class_grads"](params, rows, rows[1])
    expected = jax.jit(value_and_term_grads(names["class_losses"]))(params, rows)
    assert_close(found, expected, rtol=1e-5)
    assert float(names["losses"].mean()) < 0.7 * np.log(names["K"])
