"""Adam for the sum, scaled by the largest second moment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import per_term, scale_by_max_adam, sum_terms
from tests._asserts import assert_close, assert_finite, assert_message, assert_zero
from tests._problems import sizes
from tests._runs import all_steps, first_step

REDUCTIONS = ["max", "mean", "own"]


# One and the same for equal arguments, so that tests share what it is compiled to.
max_adam = functools.cache(scale_by_max_adam)


def run(tx, grads):
    """Updates of every step, and the last state; grads [steps, K, *p]."""
    updates, states = all_steps(tx, grads, np.zeros(grads.shape[2:], grads.dtype))
    return updates, jax.tree.map(lambda x: x[-1], states)


def draw(steps, terms, seed=0, dtype=np.float64):
    drawn = np.random.default_rng(seed).normal(size=(steps, terms, 5))
    return drawn.astype(dtype)


# After one step from zero the corrected moments are g and g**2 exactly.
@pytest.mark.parametrize("terms", sizes(3, 17, slow=(1, 2, 5, 16, 33)))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_first_step(x64, reduction, terms):
    grads = draw(1, terms, seed=terms)
    updates, _ = run(scale_by_max_adam(terms, eps=0.3, reduction=reduction), grads)
    g = np.asarray(grads[0])
    denominator = {
        "max": np.abs(g).max(0),
        "mean": np.sqrt(np.mean(g**2, axis=0)),
        "own": np.abs(g),
    }[reduction]
    assert_close(updates[0], (g / (denominator + 0.3)).sum(0), rtol=1e-13)


def test_eps_root_stands_inside_the_root(x64):
    grads = draw(1, 2)
    updates, _ = run(scale_by_max_adam(2, eps=0.3, eps_root=0.2), grads)
    g = np.asarray(grads[0])
    expected = g.sum(0) / (np.sqrt((g**2).max(0) + 0.2) + 0.3)
    assert_close(updates[0], expected, rtol=1e-13)


def test_own_is_adam_of_each_term(x64):
    grads = draw(6, 3)
    rates = {"b1": 0.5, "b2": 0.75}  # exact in float32, as Optax corrects its bias
    own, _ = run(scale_by_max_adam(3, reduction="own", **rates), grads)
    lifted = optax.chain(per_term(optax.scale_by_adam(**rates), 3), sum_terms())
    assert_close(own, run(lifted, grads)[0], rtol=1e-12)


def test_amsgrad_never_forgets_the_largest(x64):
    grads = draw(8, 3)
    grads[2] *= 100
    for reduction in REDUCTIONS:
        tx = scale_by_max_adam(3, b1=0.0, reduction=reduction, amsgrad=True)
        all_updates, states = all_steps(tx, grads)
        largest, v = None, np.zeros((3, 5))
        for t, grad in enumerate(grads, start=1):
            v = 0.999 * v + 0.001 * grad**2
            v_hat = v / (1 - 0.999**t)
            reduced = {"max": v_hat.max(0), "mean": v_hat.mean(0), "own": v_hat}[
                reduction
            ]
            largest = reduced if largest is None else np.maximum(largest, reduced)
            expected = grad / (np.sqrt(largest) + 1e-8)
            assert_close(all_updates[t - 1], expected.sum(0), rtol=1e-11)
            assert_close(states.nu_max[t - 1], largest, rtol=1e-11)


@pytest.mark.parametrize("terms", [1, 4])
def test_buffers(terms):
    params = {"a": np.zeros((5, 3)), "b": np.zeros(7)}
    copies = {"max": terms + 1, "mean": terms + 1, "own": 2 * terms}
    more = {"max": 1, "mean": 1, "own": terms}
    for reduction in REDUCTIONS:
        for amsgrad in (False, True):
            tx = scale_by_max_adam(terms, reduction=reduction, amsgrad=amsgrad)
            state = jax.eval_shape(tx.init, params)
            size = sum(leaf.size for leaf in jax.tree.leaves(state))
            expected = copies[reduction] + amsgrad * more[reduction]
            assert size == expected * 22 + terms + 1  # the counts


@pytest.mark.parametrize("b2", [0.9, 0.999, 0.99999])
def test_bias_correction_is_accurate_in_single_precision(b2):
    # Equal gradients make the corrected moments g and g**2 at every step, so that each
    # step is K; 1 - b2**t in float32 would be off by 3e-5 (3e-3 for b2 = 0.99999).
    grads = np.full((40, 2, 5), 0.37, np.float32)
    updates, _ = run(scale_by_max_adam(2, b2=b2, eps=0.0), grads)
    assert_close(updates, np.full((40, 5), 2.0), rtol=2e-6)


def test_bias_correction_with_traced_rates(x64):
    grads = draw(4, 2)
    make = optax.inject_hyperparams(scale_by_max_adam, static_args=("num_terms",))
    found, _ = run(make(num_terms=2, b1=0.9, b2=0.999), grads)
    assert_close(found, run(max_adam(2), grads)[0], rtol=1e-9)


@pytest.mark.parametrize("b1", [0.0, 0.9])
@pytest.mark.parametrize("b2", [0.0, 0.999])
def test_decay_rates_of_zero_keep_nothing(x64, b1, b2):
    grads = draw(5, 2)
    updates, _ = run(scale_by_max_adam(2, b1=b1, b2=b2, eps=0.0), grads)
    assert_finite(updates)
    if b1 == b2 == 0:
        expected = grads.sum(1) / np.abs(grads).max(1)
        assert_close(updates, expected, rtol=1e-13)


def test_first_moment_of_another_dtype():
    grads = draw(4, 2, dtype=np.float32)
    narrow, state = run(scale_by_max_adam(2, mu_dtype=jnp.bfloat16), grads)
    assert state.mu.dtype == jnp.bfloat16
    assert state.nu.dtype == jnp.float32
    wide, _ = run(max_adam(2), grads)
    # The first step is taken before the moment is rounded.
    assert_close(narrow[0], wide[0], rtol=1e-6)
    assert_close(narrow, wide, rtol=2e-2)
    assert np.any(narrow[1:] != wide[1:])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_second_moments_of_half_precision_parameters_are_wide(dtype):
    tx = scale_by_max_adam(2, amsgrad=True)
    state = jax.eval_shape(tx.init, np.zeros(5, dtype))
    assert state.mu.dtype == dtype
    assert state.nu.dtype == state.nu_max.dtype == jnp.float32
    # A bfloat16 average with b2 = 0.999 would stand still: 1 + 0.001 rounds to 1.
    _, state = run(max_adam(2), np.ones((400, 2, 5), dtype))
    assert_close(state.nu, np.full((2, 5), 1 - 0.999**400), rtol=1e-4)


def test_zero_gradients_give_no_step():
    for reduction in REDUCTIONS:
        tx = scale_by_max_adam(2, reduction=reduction)
        updates, state = run(tx, np.zeros((3, 2, 5), np.float32))
        assert_zero(updates)
        assert_finite(state)


@pytest.mark.parametrize("reduction", ["max", "own"])
def test_momentum_without_a_second_moment_gives_no_step(reduction):
    # Neither an infinite step nor one of the momentum's own length.
    tx = scale_by_max_adam(2, b2=0.0, eps=0.0, reduction=reduction)
    grads = np.float32([[[3.0, 1.0], [3.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    (_, updates), state = run(tx, grads)
    assert np.all(state.mu[..., 0] != 0)
    assert_zero(updates[0])
    assert updates[1] > 0.5


def test_the_loudest_term_shortens_everybody_s_step(x64):
    grads = np.array([[[1.0, 1.0], [0.0, 50.0]]])
    updates, _ = run(scale_by_max_adam(2, eps=0.0), grads)
    assert_close(updates[0], np.array([1.0, 51 / 50]), rtol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scale_of_the_gradients_does_not_matter_without_eps(x64, reduction):
    grads, tx = draw(5, 3), scale_by_max_adam(3, eps=0.0, reduction=reduction)
    expected, _ = run(tx, grads)
    for scale in (1e-8, 1e8):
        assert_close(run(tx, scale * grads)[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"b1": 1.0}, ["b1", "[0, 1)", "1.0"]),
        ({"b1": -0.1}, ["b1", "[0, 1)", "-0.1"]),
        ({"b2": 1.5}, ["b2", "[0, 1)", "1.5"]),
        ({"b2": float("nan")}, ["b2", "[0, 1)", "nan"]),
        ({"eps": -1.0}, ["eps", "[0, inf)", "-1.0"]),
        ({"eps_root": -1.0}, ["eps_root", "[0, inf)", "-1.0"]),
        ({"reduction": "min"}, ["reduction", "'max', 'mean', 'own'", "'min'"]),
    ],
)
def test_bad_hyperparameter_is_named(own_errors, options, words):
    with pytest.raises(ValueError, match="scale_by_max_adam") as caught:
        scale_by_max_adam(2, **options)
    assert_message(caught.value, *words)


@pytest.mark.parametrize("count", [0, -1, True, 2.5])
def test_bad_num_terms_is_named(own_errors, count):
    with pytest.raises((TypeError, ValueError), match="num_terms must be") as caught:
        scale_by_max_adam(count)
    assert_message(caught.value, "scale_by_max_adam", "found", repr(count))


def test_wrong_number_of_terms_is_named():
    tx = scale_by_max_adam(3)
    with pytest.raises(ValueError, match="num_terms=3, but the term axis has 2"):
        first_step(tx, np.ones((2, 5), np.float32))
