"""IMTL-L against its transcription and its optimum."""

import numpy as np
import optax
import pytest

from multiterm_optax import imtl_l
from tests._asserts import assert_message
from tests._methods import Method
from tests._problems import sizes
from tests.references import imtl_l as reference
from tests.weightings._runs import deviation, random_losses, run

METHODS = {
    # Without Optax's Adam, which JAX's strict settings refuse.
    "imtl_l": Method(imtl_l, {"learning": optax.sgd(0.1)}),
    "imtl_l, adam": Method(imtl_l, {"learning": optax.adam(0.05)}),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("terms", sizes(10, slow=(2,)))
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_transcription(adam, terms, rng, record_deviation):
    losses = random_losses(rng, 40, terms)
    found, _ = run(imtl_l(optax.adam(0.05) if adam else optax.sgd(0.05)), losses)
    largest = deviation(found, reference.imtl_l(losses, rate=0.05, adam=adam))
    record_deviation(f"imtl_l, {'adam' if adam else 'sgd'}", largest)
    assert largest <= 1e-12


def test_constant_losses_end_at_one_size():
    losses = np.array([1e-2, 1.0, 50.0])
    weights, state = run(imtl_l(optax.adam(0.05)), np.broadcast_to(losses, (2000, 3)))
    np.testing.assert_array_equal(weights[0], 1.0)
    np.testing.assert_allclose(weights[-1] * losses, 1.0, rtol=1e-3)
    # Nowhere else is what it minimises as low.
    s = np.asarray(state.log_scale, np.float64)
    for h in (-0.1, 0.1):
        higher = reference.objective(s + h, losses)
        assert np.all(higher > reference.objective(s, losses))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_what_has_no_optimum_moves_nothing(bad):
    weights, _ = run(imtl_l(optax.adam(0.1)), np.broadcast_to([bad, 2.0], (50, 2)))
    np.testing.assert_array_equal(weights[:, 0], 1.0)
    assert weights[-1, 1] < 1


@pytest.mark.usefixtures("own_errors")
def test_what_learns_must_be_a_transformation():
    with pytest.raises(TypeError) as error:
        imtl_l("adam")
    assert_message(error.value, "imtl_l", "learning", "GradientTransformation", "adam")
