"""MTAdam's step without K gradients: the same step, and what it holds meanwhile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import by_loss, by_norm, mgda, value_and_max_adam
from tests._asserts import assert_close, assert_message, assert_same_signature
from tests.gradients._weighted import OLD_JAX
from tests.references import mtadam as reference

K, WIDTH, ROWS = 5, 64, 4
HYPER = {"b1": 0.85, "b2": 0.98, "eps": 1e-6}


def problem():
    """Matrices on either side, a bias, a table; matrices used twice, or in a loop."""
    rng = np.random.default_rng(0)
    square = (WIDTH, WIDTH)
    shapes = {"bias": WIDTH, "left": square, "looped": (8, 8), "out": (WIDTH, K)}
    shapes |= {"right": square, "table": (9, WIDTH), "twice": square}
    params = {k: rng.normal(size=shape) / 8 for k, shape in shapes.items()}
    return params, np.array([1, 3, 3, 8])


def losses_fn(params, rows):
    x = params["table"].at[rows].get(mode="clip")
    x = jnp.tanh(x @ params["right"] + params["bias"])
    x = jnp.tanh((params["left"].T @ x.T).T)
    x = jnp.sin(x @ params["twice"]) @ params["twice"]
    head = jax.lax.scan(
        lambda h, _: (jnp.sin(h @ params["looped"]), None), x[:, :8], None, 2
    )
    found = x @ params["out"] + head[0][:, :K]
    scales = 10.0 ** np.arange(K)
    return {str(k): scales[k] * jnp.mean(found[:, k] ** 2) for k in range(K)}


@pytest.mark.usefixtures("x64")
def test_agrees_with_algorithm_1():
    params, rows = problem()
    names = sorted(params)
    rows_of = jax.jit(jax.jacrev(losses_fn))

    def gradients(t, theta):
        del t
        found = rows_of(dict(zip(names, theta, strict=True)), rows)
        return [[found[str(k)][name] for name in names] for k in range(K)]

    expected = reference.authors(
        [params[name] for name in names],
        gradients,
        4,
        [[i] for i in range(len(names))],
        alpha=0.02,
        b3=0.8,
        terms=K,
        **HYPER,
    )
    max_adam = value_and_max_adam(losses_fn, by_norm(0.8), **HYPER)

    @jax.jit
    def step(params, state):
        _, updates, later = max_adam.update(state, params, rows)
        return jax.tree.map(lambda p, u: p - 0.02 * u, params, updates), later

    found, state = params, jax.jit(max_adam.init, static_argnums=1)(params, K)
    for _ in range(4):
        found, later = step(found, state)
        assert_same_signature(later, state)
        state = later
    for name, leaf in zip(names, expected[-1], strict=True):
        assert_close(found[name], leaf, rtol=1e-9, atol=1e-11)


def test_an_absent_term_adds_nothing_and_keeps_its_second_moment():
    rng = np.random.default_rng(1)
    params = {"bias": np.ones(WIDTH), "weight": np.full((WIDTH, WIDTH), 1 / 9)}
    params = jax.tree.map(np.float32, params)
    x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)

    def losses_of(chosen):
        def losses_fn(params, x):
            y = jnp.tanh(x @ params["weight"] + params["bias"])
            return jnp.mean(y[:, chosen] ** 2, axis=0)

        return losses_fn

    present = np.arange(K) != 2
    whole, fewer = (
        value_and_max_adam(losses_of(np.array(chosen)), by_norm())
        for chosen in (range(K), np.flatnonzero(present))
    )
    update, start = jax.jit(whole.update), whole.init(params, K)
    _, found, state = update(start, params, x, present=present)
    _, expected, _ = jax.jit(fewer.update)(fewer.init(params, K - 1), params, x)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert state.term_counts.tolist() == [1, 1, 0, 1, 1]
    _, _, before = update(start, params, x, present=np.ones(K, bool))
    _, _, after = update(before, params, x, present=present)
    for old, new in zip(before.nu.values(), after.nu.values(), strict=True):
        assert np.any(np.asarray(old)[2])
        np.testing.assert_array_equal(np.asarray(new)[2], np.asarray(old)[2])


def test_holds_no_k_gradients():
    terms, width, depth = 32, 128, 8
    params = [jax.ShapeDtypeStruct((width, width), jnp.float32)] * depth
    x = jax.ShapeDtypeStruct((4, width), jnp.float32)

    def losses_fn(params, x):
        for weight in params:
            x = jnp.tanh(x @ weight)
        return jnp.mean(x[:, :terms] ** 2, axis=0)

    max_adam = value_and_max_adam(losses_fn, by_norm())
    state = jax.eval_shape(lambda params: max_adam.init(params, terms), params)
    step = jax.jit(max_adam.update, donate_argnums=0)
    memory = step.lower(state, params, x).compile().memory_analysis()
    copies = memory.temp_size_in_bytes / (4 * depth * width**2)
    # K gradients are 32. The XLA of JAX 0.10 frees what maxima are taken of later.
    assert copies < (17 if OLD_JAX else 6)
    assert memory.alias_size_in_bytes > 4 * terms * depth * width**2


def test_aux_and_a_weighting_of_losses():
    def losses_fn(w, x):
        return (w * x, w**2), x

    max_adam = value_and_max_adam(losses_fn, by_loss(), has_aux=True)
    state = max_adam.init(np.float32(3), 2)
    (losses, aux), updates, _ = jax.jit(max_adam.update)(state, 3.0, 2.0)
    assert (float(losses[0]), float(losses[1]), float(aux)) == (6.0, 9.0, 2.0)
    assert updates.shape == ()


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda f: value_and_max_adam(f, mgda()),
            ValueError,
            ["weighting", "norms", "gramian"],
        ),
        (lambda f: value_and_max_adam(f, optax.sgd(1.0)), TypeError, ["weighting"]),
        (lambda f: value_and_max_adam(f, by_norm(), b2=1.0), ValueError, ["b2", "1.0"]),
        (
            lambda f: value_and_max_adam(f, by_norm()).update(jnp.ones(2), jnp.ones(2)),
            TypeError,
            ["MaxAdamGradState"],
        ),
        (
            lambda f: (m := value_and_max_adam(f, by_norm())).update(
                m.init(jnp.ones(2), 3), jnp.ones(2)
            ),
            ValueError,
            ["num_terms=3", "found 2"],
        ),
    ],
)
def test_refuses(call, kind, words):
    with pytest.raises(kind) as info:
        call(lambda w: w)
    assert_message(info.value, "value_and_max_adam", *words)
