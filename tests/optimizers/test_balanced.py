"""The recommended optimizer against its definition in NumPy, and its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_message, assert_zero
from tests._runs import all_steps, first_step

K, SIZE, STEPS = 3, 4, 40
RATE, B1, B2, EPS = 0.05, 0.5, 0.75, 1e-8  # exact in binary, as Optax rounds them


def parts(seed=0):
    """Least squares that pull apart, at scales of their own."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(K, 5, SIZE)), rng.normal(size=(K, 5)), [1e-4, 1.0, 1e5]


def gradients(p):
    matrices, targets, scales = parts()
    errors = matrices @ p - targets
    return 2 * np.einsum("k,kij,ki->kj", scales, matrices, errors)


def transcription(decay):
    """Every point of the run, in float64, by the lines of the definition."""
    p, points, norms = np.zeros(SIZE), [], None
    mu, nu = np.zeros(SIZE), np.zeros(SIZE)
    for t in range(1, STEPS + 1):
        grads = gradients(p)
        lengths = np.linalg.norm(grads, axis=1)
        norms = lengths if t == 1 else decay * norms + (1 - decay) * lengths
        rows = grads / norms[:, None] * np.exp(np.mean(np.log(norms)))
        total = rows.sum(axis=0)
        mu, nu = B1 * mu + (1 - B1) * total, B2 * nu + (1 - B2) * total**2
        p = p - RATE * mu / (1 - B1**t) / (np.sqrt(nu / (1 - B2**t)) + EPS)
        points.append(p)
    return np.stack(points)


def adam():
    return optax.adam(RATE, B1, B2, EPS)


def losses_fn(p):
    matrices, targets, scales = parts()
    return jnp.asarray(scales) * jnp.sum((matrices @ p - targets) ** 2, axis=1)


@functools.cache
def descend(decay):
    """Every point of the run, and of one that finds the weights first."""
    tx, value_and_grads = mt.balanced(adam(), K, decay), mt.value_and_term_grads
    weighting = mt.by_norm(decay, anchor="mean", eps=0.0)
    first, inner = mt.value_and_weighted_grad(losses_fn, weighting), adam()

    def step(carry, _):
        (p, state), (q, held, others) = carry
        losses, grads = value_and_grads(losses_fn)(p)
        updates, state = tx.update(grads, state, p, losses=losses)
        p = optax.apply_updates(p, updates)
        _, grad, held = first.update(held, q)
        updates, others = inner.update(grad, others, q)
        q = optax.apply_updates(q, updates)
        return ((p, state), (q, held, others)), (p, q)

    @jax.jit
    def run():
        p = jnp.zeros(SIZE)
        start = (p, tx.init(p)), (p, first.init(K), inner.init(p))
        return jax.lax.scan(step, start, length=STEPS)[1]

    return jax.tree.map(np.asarray, run())


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_agrees_with_its_definition(x64, record_deviation, decay):
    found, _ = descend(decay)
    expected = transcription(decay)
    deviation = np.abs(found - expected).max() / np.abs(expected).max()
    record_deviation("balanced", deviation)
    assert deviation < 1e-9


def test_weights_first_takes_the_same_steps(x64):
    found, others = descend(0.999)
    assert_close(others[:3], found[:3], rtol=1e-10)


def test_one_term_is_the_inner_optimizer(x64):
    grads = np.array([[1.0, 5.0], [-2.0, 0.5], [0.0, 0.0]])
    found, _ = all_steps(mt.balanced(adam(), 1), grads[:, None])
    assert_close(found, all_steps(adam(), grads, np.zeros(2))[0], rtol=1e-12)


ONE_STEP = {terms: mt.balanced(optax.sgd(1.0), terms) for terms in (2, K)}


def one_step(grads, **extra_args):
    return first_step(ONE_STEP[len(grads)], grads, **extra_args)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e15])
def test_a_factor_of_one_loss_is_a_factor_of_the_step(x64, scale):
    grads = gradients(np.ones(SIZE))
    plain, _ = one_step(grads)
    scaled, _ = one_step(grads * np.array([1.0, scale, 1.0])[:, None])
    assert_close(scaled, plain * scale ** (1 / K), rtol=1e-9)


def test_the_order_of_the_terms_plays_no_part(x64):
    grads = gradients(np.ones(SIZE))
    assert_close(one_step(grads[[2, 0, 1]])[0], one_step(grads)[0], rtol=1e-9)


def test_an_absent_term_is_left_out_and_keeps_its_average():
    grads, present = gradients(np.ones(SIZE)), np.array([True, False, True])
    spoilt = np.where(present[:, None], grads, np.nan)
    found, state = one_step(spoilt, present=present)
    expected, _ = one_step(grads[present])
    assert_close(found, expected, rtol=1e-5)
    assert float(optax.tree.get(state, "norms")[1]) == 0.0
    assert_zero(one_step(grads, present=np.zeros(K, bool))[0])


def test_any_inner_optimizer_gets_its_extra_arguments_and_needs_no_key():
    """Here one that treats matrices and vectors apart, behind a schedule and a clip."""
    inner = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(optax.cosine_decay_schedule(0.1, 10)),
        optax.contrib.reduce_on_plateau(),
    )
    params = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    grads = jax.tree.map(lambda p: np.stack([p + 1, -2 * (p + 0.3)]), params)
    losses = {"far": 1.0, "near": -2.0}
    tx = mt.balanced(inner, 2)
    updates, _ = first_step(tx, grads, params, losses=losses, value=3.0)
    assert jax.tree.map(np.shape, updates) == jax.tree.map(np.shape, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_errors_name_it(own_errors):
    with pytest.raises(TypeError, match="inner") as error:
        mt.balanced(mt.mgda(), 2)
    assert_message(error, "balanced", "inner")
    with pytest.raises(ValueError, match="decay") as error:
        mt.balanced(optax.sgd(0.1), 2, decay=1.5)
    assert_message(error, "balanced", "decay", "1.5")
    tx = mt.balanced(optax.sgd(0.1), 2)
    state = tx.init(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="term axis") as error:
        tx.update(np.ones(3, np.float32), state)
    assert_message(error, "balanced", "(3,)")
    with pytest.raises(ValueError, match="losses") as error:
        tx.update(np.ones((2, 3), np.float32), state, losses=np.ones(3))
    assert_message(error, "balanced", "losses", "found 3")
