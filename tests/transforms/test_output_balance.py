"""EnCodec's balancer against its transcription, and behind a model's output."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import output_balance, value_and_term_grads
from tests._asserts import assert_message
from tests._runs import all_steps, first_step
from tests.references import output_balance as reference
from tests.transforms import _balancers as steps
from tests.transforms._balancers import K

OPTIONS = {
    "default": {},
    "weights": {"weights": [1.0, 0.0, 3.0], "total_norm": 2.5, "decay": 0.9},
    "per row": {"per_row": True, "weights": [1.0, 2.0, 3.0]},
}


def outputs(steps_=30, rows=4):
    """Gradients [steps, K, rows, 2, 3] at a model's output."""
    found = steps.draw(steps_, seed=1)[0]
    rng = np.random.default_rng(2)
    return found[..., :1, None, None] * rng.normal(size=(steps_, K, rows, 2, 3))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", OPTIONS)
def test_transcription(options, record_deviation):
    options, cotangents = OPTIONS[options], outputs()
    updates, _ = all_steps(output_balance(K, **options), cotangents)
    default = {"total_norm": 1.0, "weights": np.ones(K), "decay": 0.999}
    factors = reference.factors(cotangents, **{"per_row": False, **default, **options})
    expected = factors[..., None, None, None] * cotangents
    gaps = np.max(np.abs(updates - expected), axis=(2, 3, 4))
    sizes = np.max(np.abs(expected), axis=(2, 3, 4))
    largest = np.max(gaps[sizes > 0] / sizes[sizes > 0])
    record_deviation("output_balance", largest)
    assert largest <= 1e-11
    assert not np.any(gaps[sizes == 0])


@pytest.mark.usefixtures("x64")
def test_shares_of_the_norm_are_those_asked_for():
    weights = np.array([5.0, 3.0, 2.0])
    tx = output_balance(K, total_norm=4.0, weights=weights, decay=0.0)
    updates, _ = all_steps(tx, outputs(3))
    norms = np.linalg.norm(updates.reshape(3, K, -1), axis=2)
    np.testing.assert_allclose(norms, np.broadcast_to(0.4 * weights, (3, K)))


def test_awkward_gradients_are_finite_and_the_scale_does_not_matter():
    states = steps.assert_awkward_is_finite(output_balance(K))
    for scale, norms in zip(steps.SCALES[1:], states.norms[1:], strict=True):
        np.testing.assert_allclose(norms, scale * states.norms[0], rtol=1e-5)


def test_rows_of_several_leaves_are_one():
    tx, rng = output_balance(2, per_row=True), np.random.default_rng(0)
    grads = {"a": rng.normal(size=(2, 5, 3)), "b": rng.normal(size=(2, 5))}
    _, state = first_step(tx, grads)
    whole = np.concatenate([grads["a"], grads["b"][..., None]], axis=2)
    expected = np.mean(np.linalg.norm(whole, axis=2), axis=1)
    np.testing.assert_allclose(state.norms, expected, rtol=1e-6)


def test_a_norm_that_is_not_finite_leaves_its_average():
    grads = np.float32([[[3.0, 4.0], [1.0, 0.0]], [[3.0, 4.0], [np.nan, 0.0]]])
    _, states = all_steps(output_balance(2), grads)
    assert states.norms[1, 1] == states.norms[0, 1]
    np.testing.assert_allclose(states.norms, [[5.0, 1.0]] * 2, rtol=2e-7)
    np.testing.assert_array_equal(states.seen[1], [2, 1])


def test_at_the_output_and_then_one_backward_pass():
    # The sum of the balanced gradients at the output goes back through the model once.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    w = rng.normal(size=(3, 2))

    def losses_fn(output):
        return jnp.stack([1e4 * jnp.mean((output - y) ** 2), jnp.mean(jnp.abs(output))])

    tx = output_balance(2)

    @jax.jit
    def balanced(w):
        output, pullback = jax.vjp(lambda w: jnp.tanh(x @ w), w)
        _, along = value_and_term_grads(losses_fn)(output)
        updates, _ = tx.update(along, tx.init(output), output)
        return pullback(updates.sum(axis=0))[0]

    output = np.tanh(x @ w)
    along = np.stack([2e4 * (output - y), np.sign(output)]) / output.size
    units = along / np.linalg.norm(along.reshape(2, -1), axis=1)[:, None, None]
    expected = x.T @ (0.5 * units.sum(axis=0) * (1 - output**2))
    np.testing.assert_allclose(balanced(w), expected, rtol=1e-5)


def test_decay_and_norm_may_be_traced():
    make = optax.inject_hyperparams(
        output_balance, static_args=("num_terms", "weights", "per_row")
    )
    grads = outputs(1)[0]
    found = make(num_terms=K, total_norm=0.5, decay=0.9)
    plain = output_balance(K, 0.5, decay=0.9)
    updates, _ = first_step(found, grads)
    expected, _ = first_step(plain, grads)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total_norm": -1.0}, ["total_norm", "[0, inf)", "-1.0"]),
        ({"weights": [1.0, 2.0]}, ["weights", "(3,)", "(2,)"]),
        ({"decay": 1.0}, ["decay", "[0, 1)", "1.0"]),
        ({"per_row": "item"}, ["per_row", "False, True", "'item'"]),
    ],
)
def test_bad_hyperparameters_are_errors(options, words):
    with pytest.raises((TypeError, ValueError)) as error:
        output_balance(K, **options)
    assert_message(error.value, "output_balance", *words)


@pytest.mark.usefixtures("own_errors")
@pytest.mark.parametrize("shapes", [[(2,)], [(2, 3), (2, 4)], [(2, 3), (2,)]])
def test_leaves_without_the_same_rows_are_errors(shapes):
    tx = output_balance(2, per_row=True)
    grads = [np.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match="output_balance: with per_row") as error:
        first_step(tx, grads)
    assert_message(error.value, "[K, rows, ...]", str(shapes[0]))
