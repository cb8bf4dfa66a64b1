"""What value_and_weighted_grad refuses, and what its messages name."""

import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import equal, mgda, value_and_weighted_grad
from multiterm_optax.gradients import WeightedGradState
from tests._asserts import assert_message
from tests.gradients._weighted import doubled

W = np.ones(3, np.float32)


def made(**options):
    weighting = options.pop("weighting", equal())
    return value_and_weighted_grad(lambda w: [jnp.sum(w), w[0]], weighting, **options)


def updated(*args, num_terms=2, present=None, **options):
    weighted_grad = made(**options)
    return weighted_grad.update(weighted_grad.init(num_terms), *args, present=present)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: made(weighting=0.5), TypeError, ["weighting", "mgda()", "0.5"]),
        (lambda: made(weighting=mgda), TypeError, ["weighting", "function mgda"]),
        (lambda: made(every=0), ValueError, ["every", "at least 1", "found 0"]),
        (lambda: made(every=2.0), TypeError, ["every", "static Python int", "2.0"]),
        (lambda: made(every=True), TypeError, ["every", "static Python int", "True"]),
        (lambda: made(gramian="loop"), ValueError, ["gramian", "'leaf'", "'loop'"]),
        (lambda: made().init(0), ValueError, ["num_terms", "at least 1", "0"]),
        (
            lambda: updated(W, num_terms=3),
            ValueError,
            ["losses_fn", "num_terms=3", "found 2"],
        ),
        (lambda: made().update(W), TypeError, ["init(num_terms)", "state", "found"]),
        (lambda: made().update(None, W), TypeError, ["init(num_terms)", "NoneType"]),
        (lambda: updated(), ValueError, ["argnums=0", "0 positional"]),
        (
            lambda: updated(np.arange(3, dtype=np.int32)),
            TypeError,
            ["argument 0", "int32"],
        ),
        (lambda: updated(W, has_aux=True), TypeError, ["has_aux", "(losses, aux)"]),
        (
            lambda: updated(W, shared={"w": True}),
            ValueError,
            ["shared", "structure", "'w'"],
        ),
        (lambda: updated(W, shared=False), ValueError, ["shared", "at least one"]),
        (
            lambda: updated(W, present=np.ones(3, bool)),
            ValueError,
            ["present", "shape (2,)", "(3,)"],
        ),
        (
            lambda: updated(W, present=np.ones(2, np.float32)),
            ValueError,
            ["present", "booleans", "float32"],
        ),
        (
            lambda: updated(W, shared="trunk"),
            TypeError,
            ["shared", "booleans", "trunk"],
        ),
        (
            lambda: updated(W, shared=lambda w: 1),
            TypeError,
            ["shared", "booleans", "found 1"],
        ),
        (
            lambda: value_and_weighted_grad(
                lambda w: [jnp.sum(doubled(w))], mgda(), gramian="forward"
            ).update(value_and_weighted_grad(made, mgda()).init(1), W),
            ValueError,
            ["gramian='forward'", "custom_vjp", "'leaf'"],
        ),
    ],
)
@pytest.mark.usefixtures("own_errors")
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert_message(caught.value, "value_and_weighted_grad:", *words)


def test_state_is_named():
    state = made().init(2)
    assert isinstance(state, WeightedGradState)
    assert state._fields == ("weights", "weighting", "count")
