"""The recommended optimizer against its definition in NumPy, and its promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._asserts import assert_close, assert_identical, assert_message
from tests.references import dual_cone

K, SIZE, STEPS = 3, 4, 40
RATE, B1, B2, EPS = 0.05, 0.5, 0.75, 1e-8  # exact in binary, as Optax rounds them


def parts(seed=0):
    """Least squares that pull apart, at scales of their own."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(K, 5, SIZE)), rng.normal(size=(K, 5)), [1e-4, 1.0, 1e5]


def losses_and_grads(p, present=(True,) * K):
    matrices, targets, scales = parts()
    errors = matrices @ p - targets
    losses = scales * np.sum(errors**2, axis=1)
    grads = 2 * np.einsum("k,kij,ki->kj", scales, matrices, errors)
    return losses * present, grads * np.array(present)[:, None]


def transcription(decay):
    """Every point of the run, in float64, by the three lines of the definition."""
    p, points = np.zeros(SIZE), []
    total = np.zeros(K)
    mu, nu = np.zeros((K, SIZE)), np.zeros((K, SIZE))
    for t in range(1, STEPS + 1):
        losses, grads = losses_and_grads(p)
        total = decay * total + (1 - decay) * np.abs(losses)
        means = total / (1 - decay**t)
        rows = grads / means[:, None] * np.exp(np.mean(np.log(means)))
        rows = np.stack([dual_cone.projected(rows, one) for one in np.eye(K)])
        mu, nu = B1 * mu + (1 - B1) * rows, B2 * nu + (1 - B2) * rows**2
        steps = mu / (1 - B1**t) / (np.sqrt(nu / (1 - B2**t)) + EPS)
        p = p - RATE * steps.sum(axis=0)
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
    for loss, grad in [(3.0, [1.0, 5.0]), (0.0, [-2.0, 0.5]), (-1.0, [0.0, 0.0])]:
        grads = jnp.array([grad])
        found, state = tx.update(grads, state, params, losses=jnp.array([loss]))
        expected, other = inner.update(grads[0], other, params)
        assert_close(found, expected, rtol=1e-12)


def test_an_absent_term_takes_no_step_and_keeps_its_part():
    tx = mt.balanced(adam(), K)
    losses, grads = losses_and_grads(np.ones(SIZE))
    grads, losses = jnp.float32(grads), jnp.float32(losses)
    update = jax.jit(tx.update)
    _, state = update(grads, tx.init(grads[0]), losses=losses)
    present = jnp.array([True, False, True])
    spoiled = losses.at[1].set(jnp.nan), grads.at[1].set(jnp.nan)
    found, after = update(spoiled[1], state, losses=spoiled[0], present=present)
    two = mt.balanced(adam(), 2)
    rest = jnp.array([0, 2])
    _, start = two.update(grads[rest], two.init(grads[0]), losses=losses[rest])
    means = optax.tree.get(after, "means")
    assert_identical(means[1], optax.tree.get(state, "means")[1])
    moments = optax.tree.get(after, "mu"), optax.tree.get(state, "mu")
    assert_identical(moments[0][1], moments[1][1])
    assert np.isfinite(found).all()
    # With both seen once, the weights of the others are theirs without it.
    _, other = two.update(grads[rest], start, losses=losses[rest])
    pair = optax.tree.get(after, "found")[0][rest]
    alone = optax.tree.get(other, "found")[0]
    assert_close(pair[0] / pair[1], alone[0] / alone[1], rtol=1e-5)


def test_the_state_says_what_each_stage_did():
    tx = mt.balanced(optax.adamw(0.1), 2)
    grads = {"w": jnp.array([[1.0, 0.0], [-100.0, 100.0]])}
    params = {"w": jnp.zeros(2)}
    losses = {"far": jnp.array(1.0), "near": jnp.array(100.0)}
    _, state = tx.update(grads, tx.init(params), params, losses=losses)
    weights, mixing = optax.tree.get(state, "found")
    assert_close(weights, jnp.array([10.0, 0.1]), rtol=1e-6)
    assert_close(mixing, jnp.array([[1.0, 0.5], [1.0, 1.0]]), rtol=1e-6)
    assert float(optax.tree.get(state, "conflicts")) == 1.0


def test_any_inner_optimizer_and_no_key():
    """One that treats matrices and vectors apart, behind a schedule and a clip."""
    inner = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(optax.cosine_decay_schedule(0.1, 10)),
    )
    tx = mt.balanced(inner, 2)
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    grads = jax.tree.map(lambda p: jnp.stack([p + 1, -2.0 * (p + 0.3)]), params)
    updates, _ = tx.update(grads, tx.init(params), params, losses=jnp.ones(2))
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
    grads = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="losses") as error:
        tx.update(grads, tx.init(grads[0]))
    assert_message(error, "balanced", "losses")
    with pytest.raises(ValueError, match="term axis") as error:
        tx.update(jnp.ones(3), tx.init(grads[0]), losses=jnp.ones(2))
    assert_message(error, "balanced", "(3,)")
