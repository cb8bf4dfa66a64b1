"""Losses and per-term gradients: K separate jax.grad calls, for less."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import term_grads, value_and_term_grads
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_identical,
    assert_message,
    assert_same_structure,
    assert_single_trace,
    assert_term_shapes,
    assert_zero,
)

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


@jax.custom_vjp
def clipped(v):
    return v**2


clipped.defvjp(lambda v: (v**2, v), lambda v, g: (jnp.clip(2 * v * g, -1.0, 1.0),))

BODIES = {
    "custom_vjp": lambda w: jnp.sum(clipped(w)),
    "custom_jvp": lambda w: jnp.sum(jax.nn.relu(w)),
    "scan": lambda w: jax.lax.scan(lambda c, v: (jnp.sin(c * v), None), 1.0, w)[0],
    "map": lambda w: jnp.sum(jax.lax.map(jnp.exp, w)),
    "cond": lambda w: jax.lax.cond(w[0] > 0, jnp.sum, lambda v: jnp.sum(v**2), w),
    "fori": lambda w: jax.lax.fori_loop(0, 3, lambda _, c: c * jnp.sum(w), 1.0),
    "remat": lambda w: jax.checkpoint(lambda v: jnp.sum(jnp.tanh(v) ** 2))(w),
    "jit": lambda w: jax.jit(lambda v: jnp.prod(v))(w),
    "stop_gradient": lambda w: jnp.sum(w * jax.lax.stop_gradient(w)),
    "while outside": lambda w: (
        jnp.sum(w) * jax.lax.while_loop(lambda c: c < 9, lambda c: c + 2, jnp.zeros(()))
    ),
    "integers inside": lambda w: jnp.sum(w[jnp.argsort(w)[:2]]),
}


BODY_CASES = [(body, None) for body in BODIES]
BODY_CASES += [("custom_vjp", "vmap"), ("cond", "vmap"), ("scan", "vmap")]
BODY_CASES += [("scan", "loop")]


@jax.jit
def found_for_every_body(w):
    """Gradients of two terms, in a list and in an array, and those of jax.grad."""

    def other(v):
        return jnp.sum(jnp.cos(v))

    def found(body, passes, form):
        losses_fn = lambda v: form([BODIES[body](v), other(v)])  # noqa: E731
        return term_grads(losses_fn, passes=passes)(w)

    alone = {body: jax.grad(function)(w) for body, function in BODIES.items()}
    return (
        alone,
        jax.grad(other)(w),
        {
            (body, str(passes)): [
                found(body, passes, list),
                found(body, passes, jnp.stack),
            ]
            for body, passes in BODY_CASES
        },
    )


@pytest.mark.parametrize(("body", "passes"), BODY_CASES)
def test_control_flow_and_custom_derivatives(x64, passes, body):
    alone, other, found = found_for_every_body(np.array([0.4, -1.2, 2.0]))
    expected = np.stack([alone[body], other])
    assert_close(found[body, str(passes)], [expected, expected], rtol=1e-13)


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


@pytest.mark.parametrize("passes", PASSES)
def test_vmap_over_a_batch(x64, passes):
    def losses_fn(w, x):
        return {"a": jnp.sum(w * x) ** 2, "b": jnp.sum(w**3)}

    w, xs = np.arange(1.0, 4.0), np.arange(6.0).reshape(2, 3)
    fn = value_and_term_grads(losses_fn, passes=passes)
    losses, grads = jax.jit(jax.vmap(fn, in_axes=(None, 0)))(w, xs)
    products = xs @ w
    assert_close(losses, {"a": products**2, "b": np.full(2, np.sum(w**3))}, rtol=1e-13)
    expected = [[2 * y * x, 3 * w**2] for x, y in zip(xs, products, strict=True)]
    assert_close(grads, np.array(expected), rtol=1e-13)


@pytest.mark.parametrize(
    ("stacked", "passes"),
    [(False, "unroll"), (True, "unroll"), (True, "vmap"), (False, "loop")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [(False, "vmap"), (True, "loop")]
    ],
)
def test_second_derivatives(x64, passes, stacked):
    def losses_fn(w):
        terms = [jnp.sum(jnp.sin(w) ** 2), jnp.prod(w)]
        return jnp.stack(terms) if stacked else terms

    w, v = np.array([0.3, -0.5, 1.1]), np.array([1.0, 2.0, -1.0])
    fn = term_grads(losses_fn, passes=passes)

    @jax.jit
    def derivatives(w, v):
        along = jax.jvp(fn, (w,), (v,))[1]
        return along, jax.grad(lambda w: jnp.sum(fn(w) ** 2))(w)

    along, of_penalty = derivatives(w, v)
    # By hand: sum(sin^2) has the gradient sin(2 w), the product one of two factors.
    gradients = np.stack([np.sin(2 * w), w.prod() / w])
    hessians = [np.diag(2 * np.cos(2 * w)), w.prod() / np.outer(w, w)]
    np.fill_diagonal(hessians[1], 0)
    assert_close(along, np.stack([h @ v for h in hessians]), rtol=1e-12)
    expected = sum(2 * h @ g for h, g in zip(hessians, gradients, strict=True))
    assert_close(of_penalty, expected, rtol=1e-12)


@pytest.mark.parametrize("passes", PASSES)
def test_the_forward_pass_is_traced_once(passes):
    counted = CountedTraces(lambda w: [jnp.sum(w**2), jnp.sum(w), jnp.prod(w)])

    def losses_fn(w):
        return counted(w)

    fn = jax.jit(value_and_term_grads(losses_fn, passes=passes))
    for _ in range(3):
        fn.eval_shape(np.ones(4, np.float32))
    assert_single_trace(counted)


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


# What a term does not touch costs nothing. Flops are XLA's own count, before it
# compiles: within 2 % of the count after.


def flops(fn, *args):
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def network(*sizes):
    """Layers to count flops with: their entries do not matter."""
    return [np.full(shape, 0.1, np.float32) for shape in itertools.pairwise(sizes)]


def forward(layers, x):
    for layer in layers:
        x = jnp.tanh(x @ layer)
    return x


@pytest.mark.parametrize("form", ["dict", "stack", "array", "weighted", "negated"])
def test_penalty_costs_nothing(form):
    params = network(16, 32, 32, 4)
    x = np.ones((64, 16), np.float32)

    def both(params, x):
        task = jnp.mean((forward(params, x) - 1) ** 2)
        return task, sum(jnp.sum(w**2) for w in params)

    forms = {
        "dict": lambda *a: dict(zip(("task", "l2"), both(*a), strict=True)),
        "stack": lambda *a: jnp.stack(both(*a)),
        "array": lambda *a: jnp.array(both(*a)),
        "weighted": lambda *a: jnp.array([1.0, 1e-4]) * jnp.stack(both(*a)),
        "negated": lambda *a: -jnp.stack(both(*a)),
    }
    ratio = flops(value_and_term_grads(forms[form]), params, x) / flops(
        jax.value_and_grad(lambda *a: sum(both(*a))), params, x
    )
    assert ratio <= 1.05


@pytest.mark.parametrize("stacked", [False, True], ids=["dict", "stack"])
def test_heads_cost_one_pass_each(stacked):
    heads = 4
    params = {
        "trunk": network(16, 32, 32),
        "heads": {f"h{i}": network(32, 24, 3) for i in range(heads)},
    }
    x = np.ones((64, 16), np.float32)

    def head_loss(head, hidden):
        return jnp.mean((forward(head, hidden) - 1) ** 2)

    def losses_fn(params, x):
        hidden = forward(params["trunk"], x)
        losses = {k: head_loss(h, hidden) for k, h in params["heads"].items()}
        return jnp.stack(list(losses.values())) if stacked else losses

    found = flops(value_and_term_grads(losses_fn), params, x)
    head, trunk = params["heads"]["h0"], params["trunk"]
    hidden = np.ones((64, 32), np.float32)
    trunk_forward = flops(forward, trunk, x)
    trunk_both = flops(
        lambda t, x: jax.vjp(lambda t: forward(t, x), t)[1](hidden), trunk, x
    )
    one_head = flops(jax.value_and_grad(head_loss, (0, 1)), head, hidden)
    expected = trunk_forward + heads * (trunk_both - trunk_forward) + heads * one_head
    assert found <= 1.05 * expected


def test_unrolled_passes_share_the_forward_pass():
    params = network(16, 32, 32, 3)
    x = np.ones((64, 16), np.float32)

    def losses_fn(params, x):
        return jnp.mean((forward(params, x) - 1) ** 2, axis=0)

    one_forward = flops(losses_fn, params, x)
    one_pair = flops(jax.value_and_grad(lambda *a: losses_fn(*a).sum()), params, x)
    found = flops(value_and_term_grads(losses_fn, passes="unroll"), params, x)
    assert found <= 1.05 * (one_forward + 3 * (one_pair - one_forward))


# Bad input.


def errors_of(losses_fn, *args, **options):
    return lambda: value_and_term_grads(losses_fn, **options)(*args)


W = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (errors_of(lambda w: w, np.ones((2, 3))), TypeError, ["losses_fn", "(2, 3)"]),
        (
            errors_of(lambda w: {"a": w, "b": jnp.sum(w)}, W),
            TypeError,
            ["losses['a']", "K scalars", "(3,)"],
        ),
        (
            errors_of(lambda w: [w, w], W),
            TypeError,
            ["losses[0]", "array [K] or a pytree of K scalars", "(3,)"],
        ),
        (
            errors_of(lambda w: {"a": jnp.sum(w), "n": jnp.asarray(3)}, W),
            TypeError,
            ["losses['n']", "floating point", "int32"],
        ),
        (
            errors_of(lambda w: jnp.sum(w) * 1j, W),
            TypeError,
            ["losses", "real floating point", "complex64"],
        ),
        (errors_of(lambda w: {}, W), ValueError, ["losses_fn", "at least one", "none"]),
        (
            errors_of(lambda w: None, W),
            ValueError,
            ["losses_fn", "at least one", "none"],
        ),
        (
            errors_of(lambda w: w[:0], W),
            ValueError,
            ["losses_fn", "at least one", "[0]"],
        ),
        (
            errors_of(lambda p: jnp.sum(p["w"]), {"w": np.arange(3, dtype=np.int32)}),
            TypeError,
            ["argument 0['w']", "floating point", "int32"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, argnums=1),
            ValueError,
            ["argnums=1", "1 positional"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, argnums=(0, -2)),
            ValueError,
            ["argnums=-2", "1 positional"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, has_aux=True),
            TypeError,
            ["has_aux", "(losses, aux)", "found"],
        ),
        (
            errors_of(lambda w: (jnp.sum(w), 1, 2), W, has_aux=True),
            TypeError,
            ["has_aux", "(losses, aux)", "tuple"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, passes="scan"),
            ValueError,
            ["passes", "'unroll', 'vmap', 'loop'", "'scan'"],
        ),
    ],
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_bad_input_is_named(own_errors, call, error, words, jit):
    with pytest.raises(error) as caught:
        jax.jit(call)() if jit else call()
    assert_message(caught.value, *words)


@pytest.mark.parametrize("passes", ["vmap", "loop", "unroll"])
def test_non_scalar_losses_are_refused_by_every_way(own_errors, passes):
    with pytest.raises(TypeError, match="K scalars"):
        value_and_term_grads(lambda w: [w, w], passes=passes)(W)


def test_outputs_keep_structure_of_parameters():
    params = {"a": (np.ones(2, np.float32), None), "b": []}
    grads = jax.eval_shape(term_grads(lambda p: [jnp.sum(p["a"][0])] * 2), params)
    assert_same_structure(grads, params)
    assert_term_shapes(grads, params, 2)
