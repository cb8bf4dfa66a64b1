"""One term per step against M-ConFIG, with any weighting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from multiterm_optax import _weighting
from tests import _runs
from tests._asserts import assert_close, assert_finite, assert_identical, assert_message
from tests.references import cagrad, dual_cone, min_norm
from tests.references import m_config as reference
from tests.test_docs import DOCS, python_blocks, run

K, STEPS = 3, 30


def turns(steps=STEPS, terms=K):
    """Each term in turn."""
    return np.arange(terms) == np.arange(steps)[:, None] % terms


def irregular(steps=STEPS, terms=K):
    """Several at a time, pauses, a step of none, and one term that comes late."""
    found = np.random.default_rng(3).random((steps, terms)) < 0.4
    found[:9, -1] = False
    found[0], found[12] = np.arange(terms) == 1, False
    return found


def gradients(grads, present):
    """What is differentiated in each step, for the transcription."""
    return [
        {i: g[i] for i in np.flatnonzero(mask)}
        for g, mask in zip(grads, present, strict=True)
    ]


def config(rows):
    """ConFIG with equal weights, on the vectors themselves."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    x = np.linalg.pinv(units) @ np.ones(len(rows))
    x = x / np.linalg.norm(x)
    return np.sum(rows @ x) * x


def config_weighting():
    """The same from the gramian, for as many terms as there are."""

    def find(problem, state):
        lengths = jnp.sqrt(problem.squared_norms)
        inverse = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
        cosines = inverse[:, None] * problem.gramian * inverse
        along = jnp.linalg.pinv(cosines) @ (inverse > 0).astype(float)
        length = jnp.sqrt(along @ cosines @ along)
        total = jnp.sum(problem.gramian @ (inverse * along)) / length
        return total * inverse * along / length, state

    return _weighting.method(
        "config", lambda num_terms: optax.EmptyState(), find, reads_gramian=True
    )


COMBINED = {
    "equal": (mt.equal, lambda rows: rows.mean(axis=0)),
    "mgda": (mt.mgda, lambda rows: min_norm.min_norm_point(rows)[0]),
    # Of one term alone the paper's formula would be 1 + c times its gradient.
    "cagrad": (
        mt.cagrad,
        lambda rows: cagrad.direction(rows, 0.5 if len(rows) > 1 else 0),
    ),
    "upgrad": (
        mt.upgrad,
        lambda rows: dual_cone.upgrad(rows, np.full(len(rows), 1 / len(rows))),
    ),
    "config": (config_weighting, config),
}


def follow(tx, grads, present):
    """Directions [steps, P], with rubbish in the place of absent gradients."""
    given = {}
    if present is not None:
        grads = np.where(present[..., None], grads, np.nan)
        given = {"present": present}
    updates, states = _runs.all_steps(tx, _runs.split(grads), _runs.params(), **given)
    return _runs.joined(updates, 1), states


def deviation(found, expected):
    sizes = np.max(np.abs(expected), axis=1)
    assert np.all(np.isfinite(found))
    return np.max(np.max(np.abs(found - expected), axis=1) / sizes)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("equal", irregular),
        ("mgda", irregular),
        ("config", turns),
    ]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [("mgda", turns), ("cagrad", irregular), ("upgrad", irregular)]
    ],
)
def test_agrees_with_m_config(x64, record_deviation, name, pattern):
    weighting, combine = COMBINED[name]
    grads, _ = _runs.draw(STEPS, K, spread=2.0)
    present = pattern()
    found, states = follow(mt.one_at_a_time(weighting(), K, 0.8), grads, present)
    steps = gradients(grads, present)
    expected = reference.directions(steps, combine, beta=0.8)
    off = deviation(found, expected)
    record_deviation(f"one_at_a_time, {name}", off)
    assert off < 1e-12
    np.testing.assert_array_equal(states.term_counts[-1], present.sum(axis=0))


def test_single_precision(record_deviation):
    grads, _ = _runs.draw(STEPS, K, spread=2.0)
    found, _ = follow(mt.one_at_a_time(mt.mgda(), K), grads, turns())
    steps = gradients(grads, turns())
    expected = reference.directions(steps, COMBINED["mgda"][1], beta=0.9)
    off = deviation(found, expected)
    record_deviation("one_at_a_time, float32", off)
    assert off < 1e-5


def test_m_config_in_full(x64, record_deviation):
    grads, _ = _runs.draw(STEPS, K, spread=2.0)
    page = run(python_blocks(DOCS / "methods" / "one_at_a_time.md"), "one_at_a_time.md")
    tx = optax.chain(
        mt.one_at_a_time(config_weighting(), K),
        page["pseudo_gradient"](0.9),
        optax.scale_by_adam(),
    )
    found, _ = follow(tx, grads, turns())
    combined = reference.directions(gradients(grads, turns()), config, beta=0.9)
    expected = reference.adam(combined, beta_1=0.9, beta_2=0.999, eps=1e-8)
    off = deviation(found, expected)
    record_deviation("M-ConFIG", off)
    assert off < 1e-12


@pytest.mark.slow  # test_trains_with_one_gradient_a_step does, too
def test_the_page_trains():
    page = run(python_blocks(DOCS / "methods" / "one_at_a_time.md"), "one_at_a_time.md")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 2)).astype(np.float32)
    params = {"in": 0.5 * rng.normal(size=(2, 8)), "out": 0.5 * rng.normal(size=8)}
    params = start = jax.tree.map(np.float32, params)
    state, losses_fn = jax.jit(page["tx"].init)(params), jax.jit(page["losses_fn"])
    for count in range(300):
        params, state = page["step"](count, params, state, x)
    before, after = (sum(losses_fn(p, x).values()) for p in (start, params))
    assert float(after) < 0.1 * float(before)


def all_present(tx, steps=STEPS, terms=K):
    grads, _ = _runs.draw(steps, terms)
    return follow(tx, grads, None)[0]


def test_one_term_is_a_corrected_average():
    found = all_present(mt.one_at_a_time(mt.mgda(), 1, 0.7), terms=1)
    tx = optax.chain(mt.sum_terms(), optax.ema(0.7))
    assert_close(found, all_present(tx, terms=1), rtol=1e-5)


def test_all_terms_present_is_per_term_and_weighted(x64):
    # Of two terms, for which MGDA needs no iterations.
    found = all_present(mt.one_at_a_time(mt.mgda(), 2), terms=2)
    stages = mt.per_term(optax.ema(0.9), 2), mt.reweight(mt.mgda(), 2), mt.sum_terms()
    assert_close(found, all_present(optax.chain(*stages), terms=2), rtol=1e-6)


def test_without_a_memory_the_last_gradients_count():
    grads, _ = _runs.draw(K, K)
    found, _ = follow(mt.one_at_a_time(mt.equal(), K, 0.0), grads, turns(K))
    expected = np.float32(grads[np.arange(K), np.arange(K)]).mean(axis=0)
    np.testing.assert_allclose(found[-1], expected, rtol=1e-5)


def test_the_last_loss_of_each_term_counts():
    tx = mt.one_at_a_time(mt.by_loss(0.0), 2)
    grads = np.stack([np.eye(2, dtype=np.float32)] * 3)
    present = np.array([[True, False], [False, True], [False, True]])
    losses = np.float32([[4.0, np.nan], [np.nan, 1.0], [np.nan, 9.0]])
    updates, states = _runs.all_steps(tx, grads, present=present, losses=losses)
    assert states.losses[-1].tolist() == [4.0, 9.0]
    np.testing.assert_allclose(updates[-1, 0] / updates[-1, 1], 9 / 4, rtol=1e-6)
    with pytest.raises(ValueError, match="one_at_a_time: this weighting reads"):
        _runs.first_step(tx, grads[0])


# What the weightings make of any size is their matter.
@pytest.mark.parametrize(
    "name",
    ["mgda"] + [pytest.param(n, marks=pytest.mark.slow) for n in ("cagrad", "upgrad")],
)
def test_sizes(name):
    rows = np.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    factors = np.array([[1, 1, 1], [1, 0, 1], [1, 1e-10, 1]])
    sizes = np.array([1e-15, 1.0, 1e15])[:, None]
    scales = (sizes[:, None] * factors).reshape(-1, 3)
    tx = mt.one_at_a_time(COMBINED[name][0](), 3)

    def run(scale):
        def step(state, mask):
            updates, state = tx.update(scale[:, None] * rows, state, present=mask)
            return state, (updates, state)

        masks = jnp.asarray(turns(4, 3))
        return jax.lax.scan(step, tx.init(jnp.zeros(3)), masks)[1]

    assert_finite(jax.jit(jax.vmap(run))(jnp.float32(scales)))


def test_momenta_are_kept_in_float32():
    tx = mt.one_at_a_time(mt.equal(), 2, 0.999)
    updates, state = _runs.first_step(tx, np.ones((2, 3), jnp.bfloat16))
    assert updates.dtype == jnp.bfloat16
    assert state.momenta.dtype == jnp.float32
    assert_identical(updates, np.ones(3))


def test_trains_with_one_gradient_a_step():
    def losses_fn(w):
        return {"a": jnp.sum((w - 1.0) ** 2), "b": 100 * jnp.sum((w - 1.2) ** 2)}

    value_and_grad = mt.value_and_one_grad(losses_fn)
    tx = mt.chain(mt.one_at_a_time(mt.upgrad(), 2), optax.rmsprop(0.01))

    @jax.jit
    def train(w):
        def step(carry, count):
            w, state = carry
            losses, grads, present = value_and_grad(count, w)
            updates, state = tx.update(grads, state, w, losses=losses, present=present)
            return (w + updates, state), losses

        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(600))[0][0]

    w = train(jnp.zeros(4))
    assert np.all(np.abs(np.asarray(w) - 1.1) < 0.15)


@pytest.mark.parametrize(
    ("options", "error", "argument"),
    [
        ({"decay": 1.0}, ValueError, "decay must be"),
        ({"weighting": mt.mgda}, TypeError, "weighting must be"),
        ({"num_terms": 0}, ValueError, "num_terms must be"),
    ],
)
def test_bad_arguments_are_named(own_errors, options, error, argument):
    with pytest.raises(error, match=argument) as caught:
        mt.one_at_a_time(**{"weighting": mt.mgda(), "num_terms": 2, **options})
    assert_message(caught.value, "one_at_a_time", "found")
