"""ReLoBRaLo against its transcription, whatever was drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import relobralo
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import relobralo as reference
from tests.weightings._runs import random_losses, run

KEY = jax.random.key(3)
METHODS = {
    "relobralo": Method(relobralo, {"key": KEY}, relative=("held",)),
    "relobralo, fast": Method(
        relobralo,
        {"key": KEY, "temperature": 0.5, "alpha": 0.5, "rho": 0.5},
        relative=("held",),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(2,)))
@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_transcription(rho, terms, rng, record_deviation):
    losses = random_losses(rng, 200, terms)
    found, _ = run(relobralo(KEY, 0.7, 0.9, rho), losses)
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-14)
    lam, drawn, largest = np.ones(terms), [], 0.0
    for t in range(1, len(losses)):
        both = reference.candidates(losses, t, lam, T=0.7, alpha=0.9)
        gaps = [np.max(np.abs(found[t] - one)) / np.max(one) for one in both]
        drawn.append(int(np.argmin(gaps)))
        lam, largest = both[drawn[-1]], max(largest, min(gaps))
    record_deviation("relobralo", largest)
    assert largest <= 1e-12
    assert abs(np.mean(drawn) - rho) <= 0.15 * (rho == 0.5)


def test_defaults_are_those_documented(rng):
    losses = random_losses(rng, 6, 3)
    plain, _ = run(relobralo(KEY), losses)
    spelled_out, _ = run(relobralo(KEY, 1.0, 0.999, 0.999), losses)
    np.testing.assert_array_equal(plain, spelled_out)
    assert np.all(np.abs(plain - 1) < 0.05)


def test_the_order_of_the_terms_does_not_matter(rng):
    losses, order = random_losses(rng, 30, 3), [2, 0, 1]
    plain, _ = run(relobralo(KEY, alpha=0.5, rho=0.5), losses)
    permuted, _ = run(relobralo(KEY, alpha=0.5, rho=0.5), losses[:, order])
    np.testing.assert_allclose(permuted, plain[:, order], rtol=1e-5)


def test_the_scale_of_a_loss_does_not_matter(rng):
    losses = np.float32(random_losses(rng, 20, 3))
    plain, _ = run(relobralo(KEY, alpha=0.5), losses)
    scales = np.float32([2.0**-50, 1.0, -(2.0**50)])
    scaled, _ = run(relobralo(KEY, alpha=0.5), losses * scales)
    np.testing.assert_array_equal(scaled, plain)
    np.testing.assert_allclose(plain.sum(axis=1), 3.0, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_loss_that_is_not_finite_counts_as_unchanged(bad):
    losses = np.array([[2.0, 1.0], [bad, 1.0], [1.0, 1.0]])
    held = np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    found, state = run(relobralo(KEY, alpha=0.0), losses)
    np.testing.assert_array_equal(found, run(relobralo(KEY, alpha=0.0), held)[0])
    np.testing.assert_array_equal(state.seen, [2, 3])


def test_all_may_be_traced():
    @jax.jit
    def weigh(temperature, alpha, rho):
        weighting = relobralo(KEY, temperature, alpha, rho)
        state = weighting.init(2)
        for losses in ([4.0, 2.0], [2.0, 2.0]):
            weights, state = weighting.update(None, state, losses=jnp.array(losses))
        return weights

    powers = np.exp([0.25, 0.5])
    expected = 0.5 + 0.5 * 2 * powers / powers.sum()
    np.testing.assert_allclose(weigh(2.0, 0.5, 1.0), expected, rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": 0}, ["key", "jax.random.key(0)", "0"]),
        ({"temperature": 0.0}, ["temperature", "(0, inf]", "0.0"]),
        ({"alpha": 1.5}, ["alpha", "[0, 1]", "1.5"]),
        ({"rho": 2.0}, ["rho", "[0, 1]", "2.0"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        relobralo(**{"key": KEY, **options})
    assert_message(error.value, "relobralo", *words)
