"""SoftAdapt against its transcription, in its limits, and at work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import reweight, softadapt, value_and_term_grads, weighted
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import softadapt as reference
from tests.weightings._runs import descend, deviation, random_losses, run, run_each

METHODS = {
    "softadapt": Method(softadapt, relative=("held",)),
    "softadapt, held": Method(
        softadapt,
        {"beta": 1.0, "history": 2, "update_every": 3, "sum_to": "terms"},
        relative=("held",),
    ),
    "softadapt, loss weighted": Method(
        softadapt,
        {
            "beta": -1.0,
            "history": 3,
            "normalized": True,
            "loss_weighted": True,
            "update_every": 2,
            "eps": 0.0,
        },
        relative=("held",),
    ),
}

STEPS = 40
VARIANTS = {
    "original": {},
    "normalized": {"normalized": True},
    "loss weighted, mean": {"loss_weighted": True},
    "loss weighted, current": {"loss_weighted": "current"},
    "both": {"normalized": True, "loss_weighted": "mean"},
    "negative beta": {"beta": -2.0},
    "two losses": {"history": 2},
    "many losses": {"history": 8},
    "lower order": {"history": 6, "order": 2},
    "held": {"update_every": 3},
    "sum K": {"sum_to": "terms", "loss_weighted": True},
    "sum 5": {"sum_to": 5.0},
}


def options_of(variant):
    defaults = {"beta": 1.3, "history": 5, "normalized": False, "eps": 1e-8}
    return {**defaults, **VARIANTS[variant]}


@functools.cache
def all_variants(terms):
    """Losses, and the weights of each variant."""
    losses = random_losses(np.random.default_rng(0), STEPS, terms)
    found = run_each([softadapt(**options_of(name)) for name in VARIANTS], losses)
    return losses, dict(zip(VARIANTS, (weights for weights, _ in found), strict=True))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
@pytest.mark.parametrize("variant", VARIANTS)
def test_transcription(variant, terms, record_deviation):
    options, (losses, every) = options_of(variant), all_variants(terms)
    found = every[variant]
    f = options.get("loss_weighted", False)
    n, whole = options["history"], options.get("sum_to", 1.0)
    expected = reference.softadapt(
        losses,
        beta=options["beta"],
        n=n,
        order=options.get("order", n - 1),
        normalized=options["normalized"],
        f="mean" if f is True else f,
        epsilon=1e-8,
        every=options.get("update_every", 1),
        whole=terms if whole == "terms" else whole,
    )
    largest = deviation(found, expected)
    record_deviation(f"softadapt, {variant}", largest)
    assert largest <= 1e-12


def test_defaults_are_those_documented():
    losses = random_losses(np.random.default_rng(1), 12, 3)
    weightings = [
        softadapt(),
        softadapt(1.0, 5, order=4, normalized=True, sum_to=1.0, eps=0.0),
        softadapt(normalized=False),
        softadapt(0.1, 5, normalized=False),
    ]
    found = [weights for weights, _ in run_each(weightings, losses)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
def test_the_default_weighs_losses_of_any_scale(scale):
    # Falling by 4, by 1 and not at all: rates of -0.8, -0.2 and 0 of their sum.
    losses = np.array([[9.0, 9.0, 9.0], [5.0, 8.0, 9.0]])
    weights, _ = run(softadapt(history=2), (scale * losses).astype(np.float32))
    powers = np.exp([-0.8, -0.2, 0.0])
    np.testing.assert_allclose(weights[-1], powers / powers.sum(), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_losses_that_stand_still_have_equal_weights(scale):
    # The coefficients of order 4 are rounded, and so is their sum, which is not 0.
    losses = np.broadcast_to(scale * np.array([0.3, 1.1, 2.3, 7.7]), (6, 4))
    weights, _ = run(softadapt(), losses.astype(np.float32))
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)


def test_rate_of_change_is_exact_for_polynomials(rng):
    # Losses that are polynomials of degree 3 in the step: with order 3 the rates are
    # their derivatives at the newest step, so that two terms compare as the logistic.
    coefficients = rng.normal(size=(2, 4))
    times = np.arange(4) - 3.0
    losses = np.stack([np.polyval(c, times) for c in coefficients], axis=1)
    with jax.enable_x64(True):
        weights, _ = run(softadapt(1.0, history=4, normalized=False), losses)
    slopes = coefficients[:, 2]  # the derivative at time 0
    expected = 1 / (1 + np.exp(slopes[1] - slopes[0]))
    assert weights[-1, 0] == pytest.approx(expected, rel=1e-12)


def test_equal_until_enough_losses_were_seen(rng):
    losses = random_losses(rng, 8, 4)
    weights, state = run(softadapt(beta=3.0, history=6), losses)
    np.testing.assert_array_equal(weights[:5], 0.25)
    assert np.all(np.ptp(weights[5:], axis=1) > 1e-3)
    np.testing.assert_allclose(state.history, losses[2:], rtol=1e-6)
    np.testing.assert_array_equal(state.seen, [8] * 4)


def test_weights_add_up(rng):
    keys = ("normalized", "loss_weighted", "sum_to")
    sums = {
        (False, False, 1.0): 1.0,
        (False, "mean", "terms"): 5.0,
        (False, "current", 2.5): 2.5,
        (True, False, "terms"): 5.0,
        (True, "mean", 2.5): 2.5,
        (True, "current", 1.0): 1.0,
    }
    given = [dict(zip(keys, values, strict=True)) for values in sums]
    each = [softadapt(1.0, 3, **options) for options in given]
    found = run_each(each, random_losses(rng, 9, 5))
    for options, whole, (weights, _) in zip(given, sums.values(), found, strict=True):
        np.testing.assert_allclose(
            weights.sum(axis=1), whole, rtol=1e-6, err_msg=str(options)
        )
        assert np.all(weights > 0), options


@jax.jit
def beta_traced(beta, losses):
    """Weights of every step of two losses, from one program for all beta."""
    weighting = softadapt(beta, history=2)

    def step(state, loss):
        weights, state = weighting.update(None, state, losses=loss)
        return state, weights

    return jax.lax.scan(step, weighting.init(losses.shape[1]), losses)[1]


def test_zero_beta_gives_equal_weights(rng):
    weights, _ = run(softadapt(beta=0.0, history=3), random_losses(rng, 8, 3))
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def test_sign_of_beta():
    losses = np.array([[3.0, 3.0, 3.0], [2.0, 3.0, 4.0]])  # falls, stays, rises
    for beta, order in ((1.0, [0, 1, 2]), (-1.0, [2, 1, 0])):
        weights = np.asarray(beta_traced(beta, np.float32(losses)))
        assert list(np.argsort(weights[-1])) == order


@pytest.mark.parametrize("beta", [1e6, -1e6, 1e30, -1e30])
def test_large_beta_picks_one_term_and_does_not_overflow(beta, rng):
    losses = random_losses(rng, 6, 4).astype(np.float32)
    weights = np.asarray(beta_traced(beta, losses))
    change = losses[-1] - losses[-2]
    chosen = np.argmax(change) if beta > 0 else np.argmin(change)
    np.testing.assert_array_equal(weights[-1], np.eye(4)[chosen])


def test_normalized_does_not_depend_on_the_scale(rng):
    losses = random_losses(rng, 6, 3)
    weighting = softadapt(beta=2.0, history=3, normalized=True)
    plain, _ = run(weighting, losses)
    scaled, _ = run(weighting, 1e6 * losses)
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)


def test_normalized_keeps_the_signs_of_the_rates():
    # The signed sum, -1, would turn the rising loss into the falling one.
    losses = np.array([[5.0, 1.0], [3.0, 2.0]])
    weights, _ = run(softadapt(beta=1.0, history=2, normalized=True), losses)
    assert weights[-1, 1] > weights[-1, 0]


def test_weights_are_held():
    losses = random_losses(np.random.default_rng(2), 14, 3)
    both = [softadapt(1.0, 4, update_every=5), softadapt(1.0, 4)]
    (held, _), (fresh, _) = run_each(both, losses)
    np.testing.assert_array_equal(held[3:8], np.broadcast_to(fresh[3], (5, 3)))
    np.testing.assert_array_equal(held[8:13], np.broadcast_to(fresh[8], (5, 3)))
    np.testing.assert_array_equal(held[13], fresh[13])


def test_zero_losses_give_equal_weights():
    given = [
        {"loss_weighted": loss_weighted, "eps": eps}
        for loss_weighted in (False, "mean", "current")
        for eps in (1e-8, 0.0)
    ]
    each = [softadapt(history=2, normalized=True, **options) for options in given]
    found = run_each(each, np.zeros((4, 3)))
    for options, (weights, _) in zip(given, found, strict=True):
        np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6, err_msg=str(options))


def test_a_term_at_zero_loss_gets_no_weight_when_loss_weighted():
    losses = np.array([[1.0, 0.0], [1.0, 0.0]])
    weights, _ = run(softadapt(history=2, loss_weighted="current"), losses)
    np.testing.assert_allclose(weights[-1], [1.0, 0.0], rtol=1e-6)


def test_no_eps_keeps_the_sum_for_tiny_losses():
    losses = 1e-20 * np.array([[1.0, 3.0], [1.0, 3.0]])
    given = {"history": 2, "loss_weighted": True}
    both = [softadapt(**given), softadapt(**given, eps=1e-8)]
    (without, _), (paper, _) = run_each(both, losses)
    np.testing.assert_allclose(without[-1], [0.25, 0.75], rtol=1e-6)
    assert paper[-1].sum() < 1e-6  # as documented


# The signed losses would give weights of both signs: -0.0115, -0.0002 and 1.0117.
@pytest.mark.parametrize("loss_weighted", ["mean", "current"])
def test_negative_losses_count_by_their_magnitude(loss_weighted):
    losses = np.broadcast_to([-1.08, -0.02, 95.0], (2, 3)).astype(np.float32)
    weights, _ = run(softadapt(history=2, loss_weighted=loss_weighted), losses)
    expected = np.abs(losses[-1]) / np.abs(losses[-1]).sum()
    np.testing.assert_allclose(weights[-1], expected, rtol=1e-6)


def test_losses_that_change_their_sign_do_not_cancel_in_the_mean():
    losses = np.array([[-1.0, 1.0], [1.0, 1.0]], np.float32)
    weighting = softadapt(beta=0.0, history=2, loss_weighted=True)
    weights, _ = run(weighting, losses)
    np.testing.assert_allclose(weights[-1], [0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("loss_weighted", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-9])  # the second is smaller than eps
def test_one_term_has_the_whole_weight(loss_weighted, size, rng):
    weighting = softadapt(history=2, loss_weighted=loss_weighted, eps=1e-8)
    weights, _ = run(weighting, size * random_losses(rng, 5, 1))
    np.testing.assert_array_equal(weights, 1.0)


@pytest.mark.parametrize("variant", ["original", "both"])
def test_rosenbrock_by_plain_gradient_descent(variant):
    options = {"history": 2, "normalized": False, **VARIANTS[variant]}
    options |= {"beta": 0.1, "sum_to": "terms"}
    losses, xy, weights = descend(softadapt(**options), rate=1e-3, steps=12_000)
    assert losses[-1].sum() < 1e-2 * losses[0].sum()
    np.testing.assert_allclose(xy, [1.0, 1.0], atol=0.1)
    assert np.ptp(weights[:, 0]) > 1e-3  # the weights did change


def test_no_gradient_flows_through_the_weights():
    weighting = softadapt(history=2, loss_weighted="current")
    state = weighting.init(2)

    def total(xy):
        losses = jnp.stack([xy[0] ** 2, xy[1] ** 2])
        _, seen = weighting.update(None, state, losses=2 * losses)
        weights, _ = weighting.update(None, seen, losses=losses)
        return weights @ losses, weights

    xy = np.float32([1.0, 3.0])
    gradient, weights = jax.jit(jax.grad(total, has_aux=True))(xy)
    np.testing.assert_allclose(gradient, np.asarray(weights) * 2 * xy, rtol=1e-6)


def test_inside_a_chain_and_around_an_optimizer():
    def losses_fn(w):
        return {"a": (w - 1.0) @ (w - 1.0), "b": 10 * (w + 1.0) @ (w + 1.0)}

    weighting = softadapt(history=2, loss_weighted=True, sum_to="terms")
    tx = weighted(weighting, optax.sgd(0.01), num_terms=2)

    @jax.jit
    def both(w, state, own):
        losses, grads = value_and_term_grads(losses_fn)(w)
        updates, state = tx.update(grads, state, w, losses=losses)
        vector = jnp.stack([losses["a"], losses["b"]])
        alone, own = weighting.update(None, own, losses=vector)
        return updates, state, -0.01 * alone @ grads, alone, own

    w, own = np.float32([2.0, 0.5]), weighting.init(2)
    state = tx.init(w)
    for _ in range(6):
        updates, state, expected, alone, own = both(w, state, own)
        np.testing.assert_allclose(state.reweight.weights, alone, rtol=1e-6)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
        w = w + np.asarray(updates)


def test_groups_share_the_losses_and_so_the_weights(rng):
    tx = reweight(softadapt(history=2), num_terms=2, groups="leaf")
    params = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}
    state, update = tx.init(params), jax.jit(tx.update)
    grads = jax.tree.map(lambda p: np.ones((2, *p.shape), p.dtype), params)
    for losses in np.float32(random_losses(rng, 3, 2)):
        _, state = update(grads, state, params, losses=losses)
    np.testing.assert_array_equal(state.weights["a"], state.weights["b"])


def test_hyperparameters_may_be_traced(rng):
    losses = random_losses(rng, 5, 3)

    @jax.jit
    def last(beta, sum_to, eps):
        weighting = softadapt(beta, 2, loss_weighted=True, sum_to=sum_to, eps=eps)
        state = weighting.init(3)
        for one in losses:
            weights, state = weighting.update(None, state, losses=jnp.asarray(one))
        return weights

    weighting = softadapt(0.7, 2, loss_weighted=True, sum_to=2.0, eps=1e-3)
    expected, _ = run(weighting, losses)
    np.testing.assert_allclose(last(0.7, 2.0, 1e-3), expected[-1], rtol=1e-6)


def test_a_loss_that_is_not_finite_leaves_with_the_history(rng):
    losses = random_losses(rng, 8, 2)
    losses[3, 0] = np.nan
    weights, _ = run(softadapt(history=3), losses)
    assert np.all(np.isnan(weights[3:6]))
    assert np.all(np.isfinite(np.delete(weights, [3, 4, 5], axis=0)))


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": np.inf}, ["beta", "inf"]),
        ({"history": 1}, ["history", "at least 2", "1"]),
        ({"history": 2.5}, ["history", "static Python int", "2.5"]),
        ({"history": 5, "order": 5}, ["order", "[1, 4]", "5"]),
        ({"order": 0}, ["order", "0"]),
        ({"history": 200}, ["order", "[1, 100]", "199"]),
        ({"update_every": 0}, ["update_every", "at least 1", "0"]),
        ({"update_every": True}, ["update_every", "True"]),
        ({"loss_weighted": "median"}, ["loss_weighted", "'mean'", "'median'"]),
        ({"sum_to": "all"}, ["sum_to", "'terms'", "'all'"]),
        ({"sum_to": 0.0}, ["sum_to", "0.0"]),
        ({"eps": -1.0}, ["eps", "-1.0"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        softadapt(**options)
    assert_message(error.value, "softadapt", *words)


@pytest.mark.usefixtures("own_errors")
def test_a_traced_length_is_an_error():
    with pytest.raises(TypeError, match="history must be a static Python int"):
        jax.jit(lambda n: softadapt(history=n).init(2))(3)


@pytest.mark.usefixtures("own_errors")
def test_bad_losses_are_errors():
    weighting = softadapt()
    with pytest.raises(ValueError, match="softadapt: this weighting reads the losses"):
        weighting.update(None, weighting.init(2))
    with pytest.raises(ValueError, match="num_terms=2 values, found 3"):
        weighting.update(None, weighting.init(2), losses=jnp.ones(3))
