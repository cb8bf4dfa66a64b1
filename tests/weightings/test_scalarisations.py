"""COSMOS and PBI against the gradients of their objectives, and as a whole front."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiterm_optax as mt
from tests._arguments import ByTerm
from tests._asserts import assert_close, assert_finite, assert_message, assert_zero
from tests._methods import Method
from tests._problems import sizes
from tests.references import scalarisations
from tests.weightings._runs import filled

FACTORIES = {"cosmos": mt.cosmos, "pbi": mt.pbi}
SIDES = ByTerm((0.2, 0.5, 0.3))
METHODS = {
    # Where all losses vanish the cosine, near its kink, has more to say than the sum.
    "cosmos": Method(mt.cosmos, signed=True, nearness=0.1),
    "cosmos, preferring": Method(mt.cosmos, {"preference": SIDES}, signed=True),
    "pbi": Method(mt.pbi, signed=True),
    "pbi, from an ideal": Method(
        mt.pbi,
        {"preference": SIDES, "ideal": ByTerm((-1.0, 0.1, 0.2)), "penalty": 1.0},
        signed=True,
    ),
}

each_method = pytest.mark.parametrize("name", FACTORIES)


@functools.cache
def _compiled(name, x64):
    """Weights of a batch of losses, with traced arguments."""
    del x64

    def one(losses, arguments, present):
        weighting = FACTORIES[name](**arguments)
        state = weighting.init(len(losses))
        return weighting.update(None, state, losses=losses, present=present)[0]

    return jax.jit(jax.vmap(one))


def weights_of(name, losses, present=True, **arguments):
    """The arguments are one for each of the losses, or one for all."""
    losses = np.asarray(losses)
    given = {}
    for key, value in arguments.items():
        shape = losses.shape[:1] if key == "penalty" else losses.shape
        given[key] = filled(np.broadcast_to(value, shape).astype(losses.dtype))
    mask = np.broadcast_to(present, losses.shape)
    find = _compiled(name, bool(jax.config.jax_enable_x64))
    return np.asarray(find(filled(losses), given, filled(mask)))[: len(losses)]


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_cosmos_is_the_gradient_of_its_objective(x64, record_deviation, rng, terms):
    losses = np.exp(rng.normal(size=(50, terms)))
    losses[:10, 0] *= -1
    p, penalty = rng.uniform(0, 1, size=(50, terms)), rng.uniform(0, 5, size=50)
    found = weights_of("cosmos", losses, preference=p, penalty=penalty)
    pairs = zip(losses, p, penalty, strict=True)
    expected = [scalarisations.gradient(scalarisations.cosmos, *one) for one in pairs]
    gap = np.max(np.abs(found - expected) / np.max(np.abs(expected)))
    record_deviation("cosmos", gap)
    assert gap < 1e-13


@pytest.mark.parametrize("terms", sizes(3, slow=(2, 10)))
def test_pbi_is_the_gradient_of_its_objective(x64, record_deviation, rng, terms):
    losses = np.exp(rng.normal(size=(50, terms)))
    ideal = 0.5 * rng.normal(size=(50, terms))
    p, penalty = rng.uniform(0, 1, size=(50, terms)), rng.uniform(0, 9, size=50)
    given = {"preference": p, "penalty": penalty, "ideal": ideal}
    found = weights_of("pbi", losses, **given)
    pairs = zip(losses, p, penalty, ideal, strict=True)
    expected = [scalarisations.gradient(scalarisations.pbi, *one) for one in pairs]
    gap = np.max(np.abs(found - expected) / np.max(np.abs(expected)))
    record_deviation("pbi", gap)
    assert gap < 1e-13


def test_without_a_penalty_only_the_sum_is_left(rng):
    losses = np.exp(rng.normal(size=(5, 3))).astype(np.float32)
    p = np.float32([0.6, 0.0, 0.8])
    for name in FACTORIES:
        found = weights_of(name, losses, preference=p, penalty=0.0)
        assert_close(found, np.broadcast_to(p, found.shape), rtol=1e-7)


def test_on_the_ray_there_is_no_way_back_to_it(rng):
    p = np.float32([[0.2, 0.5, 0.3]])
    for size in (1e-15, 1.0, 1e15):
        losses = np.float32(size) * p
        found = weights_of("cosmos", losses, preference=p, penalty=5.0)
        assert_close(found, p, rtol=1e-7)
        found = weights_of("pbi", losses, preference=p)
        assert_close(found, p / np.linalg.norm(p), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_scales(scale, rng):
    """PBI does not depend on it; COSMOS's penalty is in the units of the losses."""
    losses = np.exp(rng.normal(size=(20, 3))).astype(np.float32)
    p = np.float32([0.2, 0.5, 0.3])
    scaled = losses * np.float32(scale)
    found = weights_of("pbi", scaled, preference=p)
    assert_close(found, weights_of("pbi", losses, preference=p), rtol=1e-5)
    found = weights_of("cosmos", scaled, preference=p, penalty=2.0 * scale)
    expected = weights_of("cosmos", losses, preference=p, penalty=2.0)
    assert_close(found, expected, rtol=1e-5)


@each_method
def test_zero_and_equal_losses_and_preferences_stay_finite(name):
    losses = np.float32([[0, 0, 0], [0, 0, 2], [1, 1, 1], [1, -1, 0], [1e-38, 0, 1]])
    for p in ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]):
        assert_finite(weights_of(name, losses, preference=np.float32(p)))
    plain = FACTORIES[name]()
    update, losses = jax.jit(plain.update), np.zeros(3, np.float32)
    zero = np.asarray(update(None, plain.init(3), losses=losses)[0])
    assert_close(zero, np.full(3, zero[0]), rtol=0)
    assert zero[0] > 0


@each_method
def test_absent_terms_are_no_terms(x64, name, rng):
    losses, p = np.exp(rng.normal(size=(9, 4))), np.array([0.1, 0.4, 0.3, 0.2])
    mask = np.array([True, True, False, True])
    found = weights_of(name, losses, mask, preference=p)
    expected = weights_of(name, losses[:, mask], preference=p[mask])
    assert_zero(found[:, ~mask])
    assert_close(found[:, mask], expected, rtol=1e-12)
    alone = weights_of(name, losses, np.arange(4) == 1, preference=p)
    one = p[1] if name == "cosmos" else 1.0
    assert_close(alone, np.broadcast_to(one * np.eye(4)[1], (9, 4)), rtol=1e-12)


def concave(x):
    """A front that weighted sums cannot reach but at its ends (Fonseca, Fleming)."""
    shift = 1 / jnp.sqrt(2.0)
    pair = [1 - jnp.exp(-jnp.sum((x - s) ** 2)) for s in (shift, -shift)]
    return jnp.stack(pair)


@pytest.mark.parametrize(("name", "penalty"), [("cosmos", 5.0), ("pbi", 2.0)])
def test_one_vmap_trains_a_concave_front(name, penalty):
    def train(preference):
        weighting = FACTORIES[name](preference, penalty)

        def step(x, rate):
            losses, pull = jax.vjp(concave, x)
            weights, _ = weighting.update(None, weighting.init(2), losses=losses)
            return x - rate * pull(weights)[0], None

        start = jnp.array([0.3, -0.2])
        rates = np.float32(0.2 * np.linspace(1, 0, 600) ** 2)
        return concave(jax.lax.scan(step, start, rates)[0])

    share = np.linspace(0.2, 0.8, 7, dtype=np.float32)
    losses = np.asarray(jax.jit(jax.vmap(train))(np.stack([share, 1 - share], 1)))
    # On the front, and on the ray of the preference: also in the middle of the dent.
    rays = losses / losses.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rays[:, 0], share, atol=0.02)
    x = np.linspace(-1, 1, 2001)[:, None] * np.ones(2) / np.sqrt(2)
    shift = 1 / np.sqrt(2)
    squares = [np.sum((x - s) ** 2, axis=1) for s in (shift, -shift)]
    front = 1 - np.exp(-np.stack(squares, axis=1))
    gaps = np.linalg.norm(losses[:, None] - front[None], axis=2).min(axis=1)
    assert gaps.max() < 5e-3


@each_method
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"preference": [1.0, -1.0]}, ValueError, ["preference", "-1"]),
        ({"preference": [1.0, 1.0, 1.0]}, ValueError, ["preference", "(2,)", "(3,)"]),
        ({"penalty": -1.0}, ValueError, ["penalty", "[0, inf)", "-1"]),
    ],
)
def test_bad_arguments_are_named(own_errors, name, options, error, words):
    with pytest.raises(error, match="must") as caught:
        FACTORIES[name](**options).init(2)
    assert_message(caught.value, name, *words)


def test_a_bad_ideal_is_named(own_errors):
    with pytest.raises(ValueError, match="ideal must") as caught:
        mt.pbi(ideal=[0.0, 0.0, 0.0]).init(2)
    assert_message(caught.value, "pbi", "(2,)", "(3,)")
    with pytest.raises(ValueError, match="ideal must") as caught:
        mt.pbi(ideal=np.nan)
    assert_message(caught.value, "pbi", "(-inf, inf)", "nan")
