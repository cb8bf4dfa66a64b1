"""The recommended optimizer against its definition in NumPy, and its promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_message

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


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_agrees_with_its_definition(x64, record_deviation, decay):
    tx = mt.balanced(adam(), K, decay)
    matrices, targets, scales = (jnp.asarray(part) for part in parts())

    def losses_fn(p):
        return scales * jnp.sum((matrices @ p - targets) ** 2, axis=1)

    def step(carry, _):
        p, state = carry
        losses, grads = mt.value_and_term_grads(losses_fn)(p)
        updates, state = tx.update(grads, state, p, losses=losses)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    p = jnp.zeros(SIZE)
    found = jax.lax.scan(step, (p, tx.init(p)), None, length=STEPS)[1]
    expected = transcription(decay)
    deviation = np.abs(found - expected).max() / np.abs(expected).max()
    record_deviation("balanced", deviation)
    assert deviation < 1e-9


def test_one_term_is_the_inner_optimizer(x64):
    tx, inner = mt.balanced(adam(), 1), adam()
    params = jnp.array([1.0, -2.0])
    state, other = tx.init(params), inner.init(params)
    for grad in [[1.0, 5.0], [-2.0, 0.5], [0.0, 0.0]]:
        grads = jnp.array([grad])
        found, state = tx.update(grads, state, params)
        expected, other = inner.update(grads[0], other, params)
        assert_close(found, expected, rtol=1e-12)


def test_weights_first_takes_the_same_steps(x64):
    matrices, targets, scales = (jnp.asarray(part) for part in parts())

    def losses_fn(p):
        return scales * jnp.sum((matrices @ p - targets) ** 2, axis=1)

    weighting = mt.by_norm(0.999, anchor="mean", eps=0.0)
    first, inner = mt.value_and_weighted_grad(losses_fn, weighting), adam()
    tx = mt.balanced(adam(), K)
    p = q = jnp.zeros(SIZE)
    states = tx.init(p), first.init(K), inner.init(q)
    for _ in range(3):
        losses, grads = mt.value_and_term_grads(losses_fn)(p)
        updates, one = tx.update(grads, states[0], p, losses=losses)
        _, grad, two = first.update(states[1], q)
        others, three = inner.update(grad, states[2], q)
        p, q = optax.apply_updates(p, updates), optax.apply_updates(q, others)
        states = one, two, three
    assert_close(q, p, rtol=1e-10)


def one_step(grads, **extra_args):
    tx = mt.balanced(optax.sgd(1.0), len(grads))
    return tx.update(grads, tx.init(grads[0]), **extra_args)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e15])
def test_a_factor_of_one_loss_is_a_factor_of_the_step(x64, scale):
    grads = jnp.asarray(gradients(np.ones(SIZE)))
    plain, _ = one_step(grads)
    scaled, _ = one_step(grads * jnp.array([1.0, scale, 1.0])[:, None])
    assert_close(scaled, plain * scale ** (1 / K), rtol=1e-9)


def test_the_order_of_the_terms_plays_no_part(x64):
    grads = jnp.asarray(gradients(np.ones(SIZE)))
    order = jnp.array([2, 0, 1])
    assert_close(one_step(grads[order])[0], one_step(grads)[0], rtol=1e-9)


def test_an_absent_term_is_left_out_and_keeps_its_average():
    grads = jnp.float32(gradients(np.ones(SIZE)))
    present = jnp.array([True, False, True])
    found, state = one_step(grads.at[1].set(jnp.nan), present=present)
    expected, _ = one_step(grads[jnp.array([0, 2])])
    assert_close(found, expected, rtol=1e-5)
    assert float(optax.tree.get(state, "norms")[1]) == 0.0
    assert_identical(one_step(grads, present=~present & present)[0], 0 * found)


def test_any_inner_optimizer_gets_its_extra_arguments_and_needs_no_key():
    """Here one that treats matrices and vectors apart, behind a schedule and a clip."""
    inner = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(optax.cosine_decay_schedule(0.1, 10)),
        optax.contrib.reduce_on_plateau(),
    )
    tx = mt.balanced(inner, 2)
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    grads = jax.tree.map(lambda p: jnp.stack([p + 1, -2.0 * (p + 0.3)]), params)
    losses = {"far": jnp.array(1.0), "near": jnp.array(-2.0)}
    state = tx.init(params)
    updates, _ = tx.update(grads, state, params, losses=losses, value=jnp.array(3.0))
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_errors_name_it(own_errors):
    with pytest.raises(TypeError, match="inner") as error:
        mt.balanced(mt.mgda(), 2)
    assert_message(error, "balanced", "inner")
    with pytest.raises(ValueError, match="decay") as error:
        mt.balanced(optax.sgd(0.1), 2, decay=1.5)
    assert_message(error, "balanced", "decay", "1.5")
    tx = mt.balanced(optax.sgd(0.1), 2)
    state = tx.init(jnp.ones(3))
    with pytest.raises(ValueError, match="term axis") as error:
        tx.update(jnp.ones(3), state)
    assert_message(error, "balanced", "(3,)")
    with pytest.raises(ValueError, match="losses") as error:
        tx.update(jnp.ones((2, 3)), state, losses=jnp.ones(3))
    assert_message(error, "balanced", "losses", "found 3")
