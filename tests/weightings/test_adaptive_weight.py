"""VQGAN's adaptive weight: transcription and limits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiterm_optax as mt
from tests._arguments import ByTerm
from tests._asserts import assert_finite, assert_identical, assert_message
from tests._methods import Method
from tests.references import adaptive_weight as reference


@dataclass(frozen=True)
class Place(ByTerm):
    """Where a term stands among those with some indices; None: nowhere."""

    def at(self, indices):
        places = list(indices)
        return places.index(self.values[0]) if self.values[0] in places else None


def named(main, auxiliary, **options):
    """The method, or weights of 1 for terms that lack one of the two."""
    if main is None or auxiliary is None:
        ones = mt.Weighting(
            lambda num_terms: (),
            lambda gramian, state, **_: (jnp.ones(gramian.shape[0]), state),
            reads_gramian=False,
            reads_norms=True,
        )
        return ones
    return mt.adaptive_weight(main, auxiliary, **options)


METHODS = {
    "adaptive_weight": Method(
        named, {"main": Place((0,)), "auxiliary": Place((1,))}, permutes=False
    )
}

CASES = [
    {"main": 0, "auxiliary": 1, "largest": 1e4, "eps": 1e-8, "absolute": False},
    {"main": 2, "auxiliary": 0, "largest": 10.0, "eps": 1e-4, "absolute": True},
    {"main": 1, "auxiliary": 2, "largest": 1e4, "eps": 0.1, "absolute": False},
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_transcription(case, rng, record_deviation):
    sizes = 10.0 ** rng.uniform(-3, 3, size=(30, 3, 1))
    rows = sizes * rng.normal(size=(30, 3, 8))
    options = {**case, "max": case["largest"]}
    del options["largest"]
    weighting = mt.adaptive_weight(**options)
    many = jax.jit(jax.vmap(lambda g: weighting.update(g, weighting.init(3))[0]))
    found = many(np.einsum("tip,tjp->tij", rows, rows))
    expected = np.stack([reference.weights(one, **case) for one in rows])
    largest = np.max(np.abs(found / expected - 1))
    record_deviation("adaptive_weight", largest)
    assert largest <= 1e-13


def test_every_scale_in_one_program():
    weighting = mt.adaptive_weight()
    norms = [[1, 2, 1], [2, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1e-9, 1]]
    scales = np.array([1.0, 1e-15, 1e15])
    batch = np.float32([np.array(one) * s for s in scales for one in norms])
    many = jax.jit(jax.vmap(lambda n: weighting.update(n**2, weighting.init(3))[0]))
    found = np.asarray(many(batch))
    assert_finite(found)
    expected = np.ones((6, 3))
    expected[:, 1] = [0.5, 2, 0, 1e4, 0, 1e4]
    for one in np.split(found, 3):
        np.testing.assert_allclose(one, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("term", [0, 1, 2])
def test_a_norm_that_is_not_finite_leaves_the_weight_at_one(term, value):
    weighting, norms = mt.adaptive_weight(), jnp.array([1.0, 4.0, 1.0])
    weights, _ = weighting.update(norms.at[term].set(value), weighting.init(3))
    assert_identical(weights, jnp.array([1.0, 0.5 if term == 2 else 1.0, 1.0]))


def test_without_the_main_term_nothing_is_scaled():
    weighting, norms = mt.adaptive_weight(), jnp.array([1.0, 4.0, 1.0])
    present = jnp.array([False, True, True])
    weights, _ = weighting.update(norms, weighting.init(3), present=present)
    assert_identical(weights, jnp.array([0.0, 1.0, 1.0]))


def test_a_factor_comes_after():
    both = mt.compose(mt.adaptive_weight(), mt.constant([1.0, 0.8]))
    weights, _ = both.update(jnp.array([1.0, 4.0]), both.init(2))
    np.testing.assert_allclose(weights, [1.0, 0.4], rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"main": 1}, ["auxiliary", "main=1", "found 1"]),
        ({"main": 0.5}, ["main", "index of a term", "0.5"]),
        ({"max": 0.0}, ["max", "(0, inf)", "0.0"]),
        ({"eps": -1.0}, ["eps", "[0, inf)", "-1.0"]),
        ({"absolute": 1e-4}, ["absolute", "False, True", "0.0001"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        mt.adaptive_weight(**options)
    assert_message(error.value, "adaptive_weight", *words)


def test_terms_may_be_named():
    weighting = mt.adaptive_weight(main="rec", auxiliary="adv")
    losses = {"rec": 1.0, "adv": 1.0}  # the gradients stand in the order of the names
    squares = jnp.array([4.0, 1.0]) ** 2
    weights, _ = weighting.update(squares, weighting.init(2), losses=losses)
    np.testing.assert_allclose(weights, [0.25, 1.0], rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
def test_a_term_that_is_not_there_is_an_error():
    weighting = mt.adaptive_weight(auxiliary=2)
    with pytest.raises(ValueError, match="adaptive_weight: auxiliary") as error:
        weighting.init(2)
    assert_message(error.value, "[0, 1]", "found 2")
