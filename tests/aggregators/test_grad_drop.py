"""GradDrop against Eq. 1 and 2, element by element."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import grad_drop
from tests._asserts import assert_close, assert_identical, assert_message, assert_zero
from tests._problems import SHAPES, Pulls
from tests.references import flat
from tests.references.grad_drop import drop

STEPS, KEY = 30, 3


@functools.cache
def documented_draws():
    """Uniform draws by step and leaf, by the recipe of the docstring."""

    @jax.jit
    def one_step(key):
        key, draw = jax.random.split(key)
        keys = [jax.random.fold_in(draw, leaf) for leaf in range(len(SHAPES))]
        pairs = zip(keys, SHAPES, strict=True)
        return key, [jax.random.uniform(k, s, float) for k, s in pairs]

    key, draws = jax.random.key(KEY), []
    for _ in range(STEPS):
        key, drawn = one_step(key)
        draws.append(list(map(np.asarray, drawn)))
    return draws


def steep(P):
    return P**2 / (P**2 + (1 - P) ** 2)


@pytest.mark.parametrize(
    ("terms", "leaking", "purity_fn"),
    [
        (3, False, None),
        (3, True, steep),
    ]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            (2, False, None),
            (2, True, steep),
            (3, False, steep),
            (3, True, None),
            (10, False, None),
            (10, True, steep),
        ]
    ],
)
def test_agrees_with_equations_1_and_2(
    x64, record_deviation, terms, leaking, purity_fn
):
    leak = np.linspace(0, 1, terms) if leaking else np.zeros(terms)
    problem, draws = Pulls(terms, STEPS, seed=terms), documented_draws()

    def dropped(t, theta):
        g = problem.numpy_gradients(t, theta)
        f = purity_fn or (lambda P: P)
        return [
            [
                drop([one[p] for one in g], draws[t - 1][p], leak, f)
                for p in range(len(SHAPES))
            ]
        ]

    tx = optax.chain(
        grad_drop(
            jax.random.key(KEY), leak=leak if leaking else 0.0, purity_fn=purity_fn
        ),
        optax.sgd(1e-3),
    )
    expected = flat.descend(problem.start, dropped, STEPS, eta=1e-3)
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation("grad_drop", deviation)
    assert deviation < 1e-9


def update(grads, **options):
    tx = grad_drop(jax.random.key(KEY), **options)
    return jax.jit(tx.update)(grads, tx.init(grads[0]))[0]


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_agreeing_signs_pass_whole():
    grads = np.abs(normal(4, 1000))
    assert_close(update(grads), np.sum(grads, axis=0), rtol=1e-6)
    assert_close(update(-grads), -np.sum(grads, axis=0), rtol=1e-6)


def test_sign_is_drawn_by_purity():
    grads = np.float32([[3.0] * 20000, [-1.0] * 20000])
    found = np.asarray(update(grads))
    assert set(np.unique(found)) == {-1.0, 3.0}
    assert np.mean(found > 0) == pytest.approx(0.75, abs=0.01)  # 3 deviations


def test_leak_of_one_is_the_sum():
    grads = normal(3, 50)
    assert_close(update(grads, leak=1.0), np.sum(grads, axis=0), rtol=1e-6)


def test_zeros_give_zeros():
    assert_zero(update(np.zeros((3, 5), np.float32)))


def test_one_term_passes():
    grads = normal(1, 50)
    assert_identical(update(grads), grads[0])


def test_many_small_terms_in_low_precision():
    found = update(np.full((64, 3), 2.0**-7, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert_close(found, np.full(3, 0.5, jnp.bfloat16), rtol=0)


def test_draws_are_new_at_each_step():
    grads = np.stack([np.ones(100), -np.ones(100)]).astype(np.float32)
    tx = grad_drop(jax.random.PRNGKey(KEY))
    update = jax.jit(tx.update)
    first, state = update(grads, tx.init(grads[0]))
    second, _ = update(grads, state)
    assert np.any(np.asarray(first) != np.asarray(second))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"key": 0}, TypeError, ["key", "jax.random.key(0)", "found 0"]),
        ({"leak": 1.5}, ValueError, ["leak", "[0, 1]", "1.5"]),
    ],
)
def test_bad_arguments_are_named(own_errors, options, error, words):
    with pytest.raises(error, match="must be") as caught:
        grad_drop(**{"key": jax.random.key(0), **options})
    assert_message(caught.value, "grad_drop", *words)


def test_wrong_number_of_leaks_is_named(own_errors):
    with pytest.raises(ValueError, match="leak must be") as caught:
        update(np.ones((3, 2), np.float32), leak=[0.0, 1.0])
    assert_message(caught.value, "(3,)", "(2,)")
