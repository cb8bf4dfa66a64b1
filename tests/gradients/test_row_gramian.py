"""Terms that own their rows: the gramian of B terms from one backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiterm_optax import (
    by_norm,
    check_row_losses,
    equal,
    mgda,
    value_and_row_grads,
    value_and_weighted_grad,
)
from tests._asserts import (
    assert_close,
    assert_message,
    assert_same_signature,
    assert_zero,
)
from tests.gradients._models import ROWS, dense
from tests.gradients._weighted import compiled, flat, spy

OWNERS = np.array([1, 0, 1])


def weighing(factors):
    """Given weights, and the gramian as the state."""
    return spy()._replace(
        update=lambda gramian, state, **_: (jnp.asarray(factors), gramian)
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "weights",
    [np.array([0.5, 2.0, 1.0]), pytest.param(None, marks=pytest.mark.slow)],
)
def test_owners_and_weights(weights):
    params, row_losses, rows, _ = dense()
    weighted_grad = value_and_weighted_grad(
        row_losses, weighing([2.0, -0.5, 1.0]), gramian="rows"
    )
    of_terms = value_and_row_grads(row_losses, 3, passes="loop")

    @jax.jit
    def compared(params, owners):
        return of_terms(params, rows, owners, row_weights=weights), (
            weighted_grad.update(
                weighted_grad.init(3),
                params,
                rows,
                row_terms=owners,
                row_weights=weights,
            )
        )

    for owners in (OWNERS, np.array([2, -1, 2]), np.array([0, 1, 2])):
        (losses, each), (found, grads, state) = compared(params, owners)
        assert_close(found, losses, rtol=1e-12)
        rows_of = flat(each)
        assert_close(state.weighting, rows_of @ rows_of.T, rtol=1e-10, atol=1e-10)
        expected = jax.tree.map(lambda g: np.tensordot([2, -0.5, 1], g, 1), each)
        assert_close(grads, expected, rtol=1e-10, atol=1e-12)


def test_what_is_not_finite_stays_in_its_term():
    params, row_losses, rows, _ = dense()
    weighted_grad = value_and_weighted_grad(row_losses, spy(), gramian="rows")
    update, start = jax.jit(weighted_grad.update), weighted_grad.init(2)
    # A number that names no term.
    losses, _, _ = update(start, params, rows, row_terms=np.array([0, 2, 1]))
    assert np.isnan(losses).all()
    broken = np.array(rows)
    broken[1] = np.nan
    losses, _, state = update(start, params, broken, row_terms=OWNERS)
    assert np.isnan(losses).tolist() == [True, False]
    assert np.isnan(state.weighting).tolist() == [[True, True], [True, False]]


def test_absent_rows_may_hold_anything():
    params, row_losses, rows, _ = dense()
    weighted_grad = value_and_weighted_grad(row_losses, spy(), gramian="rows")
    update = jax.jit(weighted_grad.update)
    known, start = np.array([False, True, True]), weighted_grad.init(3)
    smaller = update(weighted_grad.init(2), params, rows[1:])
    for bad in (np.nan, np.inf):
        broken = np.array(rows)
        broken[0] = bad
        found = update(start, params, broken, present=known)
        assert_close(found[0], np.append(0, smaller[0]), rtol=1e-5)
        assert_close(found[1], smaller[1], rtol=1e-4, atol=1e-5)
        products = np.pad(smaller[2].weighting, ((1, 0), (1, 0)))
        assert_close(found[2].weighting, products, rtol=1e-5)
        nothing = update(start, params, broken, present=np.zeros(3, bool))
        assert_zero(nothing[1])


@pytest.mark.usefixtures("x64")
def test_shared_norms_and_held_weights():
    params, row_losses, rows, _ = dense()
    shared = {"w": True, "b": True, "s": False, "v": False}
    weighted_grad = value_and_weighted_grad(
        row_losses, by_norm(decay=0.0), gramian="rows", shared=shared, every=2
    )
    update, state = jax.jit(weighted_grad.update), weighted_grad.init(ROWS)
    jacobian = jax.jit(jax.jacrev(row_losses))(params, rows)
    for _ in range(2):
        _, grads, later = update(state, params, rows)
        assert_same_signature(later, state)
        state = later
    norms = np.linalg.norm(flat({"w": jacobian["w"], "b": jacobian["b"]}), axis=1)
    weights = np.asarray(state.weights)
    assert_close(weights * norms, np.full(3, (weights * norms)[0]), rtol=1e-9)
    assert_close(grads["w"], np.tensordot(weights, jacobian["w"], 1), rtol=1e-9)
    assert_close(grads["v"], jacobian["v"].sum(0), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_weights_are_constants_to_a_derivative():
    params, row_losses, rows, _ = dense()
    # That a solver's loop is no obstacle is tested for the gradients of terms.
    weighted_grad = value_and_weighted_grad(row_losses, by_norm(), gramian="rows")
    along = jax.tree.map(np.ones_like, params)

    def found(p):
        return weighted_grad.update(weighted_grad.init(ROWS), p, rows)[1]

    @jax.jit
    def derivatives(params):
        weights = weighted_grad.update(weighted_grad.init(ROWS), params, rows)[
            2
        ].weights
        expected = jax.grad(lambda p: jnp.dot(weights, row_losses(p, rows)))
        inner = jax.grad(lambda p: optax.tree.vdot(found(p), along))(params)
        tangents = [jax.jvp(f, (params,), (along,))[1] for f in (found, expected)]
        return tangents, inner

    (tangent, expected), inner = derivatives(params)
    assert_close(tangent, expected, rtol=1e-9, atol=1e-10)
    assert_close(inner, expected, rtol=1e-9, atol=1e-10)


# What it costs.


def net(width=256, layers=4):
    params = [
        {
            "w": jax.ShapeDtypeStruct((width, width), jnp.float32),
            "b": jax.ShapeDtypeStruct((width,), jnp.float32),
        }
    ] * layers

    def row_losses(params, x):
        for layer in params:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return jnp.mean(x**2, axis=1)

    return params, row_losses, lambda n: jax.ShapeDtypeStruct((n, width), jnp.float32)


def conv_net():
    shapes = {"c": (3, 3, 1, 8), "d": (3, 3, 8, 16), "e": (576, 64), "f": (64, 10)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

    def row_losses(p, x):
        for kernel in (p["c"], p["d"]):
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        x = jax.nn.relu(x.reshape(len(x), -1) @ p["e"]) @ p["f"]
        return jax.nn.logsumexp(x, axis=1) - x[:, 0]

    def rows(n):
        return jax.ShapeDtypeStruct((n, 28, 28, 1), jnp.float32)

    return params, row_losses, rows


def mnist_net():
    """PyTorch's example for MNIST, without dropout."""
    shapes = {
        "c": (3, 3, 1, 32),
        "d": (3, 3, 32, 64),
        "e": (9216, 128),
        "f": (128, 10),
    }
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

    def row_losses(p, x):
        for kernel in (p["c"], p["d"]):
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x)
        x = x.reshape(len(x), 12, 2, 12, 2, 64).max(axis=(2, 4))
        x = jax.nn.relu(x.reshape(len(x), -1) @ p["e"]) @ p["f"]
        return jax.nn.logsumexp(x, axis=1) - x[:, 0]

    def rows(n):
        return jax.ShapeDtypeStruct((n, 28, 28, 1), jnp.float32)

    return params, row_losses, rows


# The products of all pairs of rows grow with the square of their number: in a net as
# small as ``conv_net`` those of 256 rows are more work than three gradients.
@pytest.mark.parametrize(
    ("model", "num_rows"),
    [(net, 32), (net, 256), (conv_net, 64)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [(net, 64), (conv_net, 32), (mnist_net, 64), (mnist_net, 256)]
    ],
)
def test_flops_and_memory(model, num_rows):
    params, row_losses, rows = model()

    def mean(params, rows):
        return row_losses(params, rows).mean()

    weighted_grad = value_and_weighted_grad(row_losses, spy(), gramian="rows")
    state = jax.eval_shape(lambda: weighted_grad.init(num_rows))
    found = compiled(weighted_grad.update, state, params, rows(num_rows))
    plain = compiled(jax.value_and_grad(mean), params, rows(num_rows))
    assert found.cost_analysis()["flops"] <= 2.5 * plain.cost_analysis()["flops"]
    # Activations and cotangents, some matrices of all pairs of rows, and the largest
    # gradients of rows that are made: those of one offset of a kernel.
    pairs, largest = 4 * num_rows**2, 4 * num_rows * 8 * 16
    allowed = (
        3.5 * plain.memory_analysis().temp_size_in_bytes + 12 * pairs + 4 * largest
    )
    assert found.memory_analysis().temp_size_in_bytes <= allowed


def test_one_program_trains():
    params, _, rows, _ = dense()

    def row_losses(p, x):
        return (jnp.sum(jnp.tanh(x @ p["w"] + p["b"]), axis=1) - 1) ** 2

    weighted_grad = value_and_weighted_grad(row_losses, mgda(), gramian="rows")
    tx = optax.sgd(0.05)

    def step(carry, _):
        params, tx_state, state = carry
        losses, grads, state = weighted_grad.update(state, params, rows)
        updates, tx_state = tx.update(grads, tx_state, params)
        return (optax.apply_updates(params, updates), tx_state, state), losses.max()

    params = jax.tree.map(np.float32, params)
    carry = params, tx.init(params), weighted_grad.init(ROWS)
    _, worst = jax.jit(lambda c: jax.lax.scan(step, c, length=10))(carry)
    worst = np.asarray(worst)
    assert worst[-1] < worst[0]


# Bad input.


def updated(*args, num_terms=3, fn=None, **more):
    params, row_losses, rows, _ = dense()
    weighted_grad = value_and_weighted_grad(fn or row_losses, equal(), gramian="rows")
    args = args or (params, rows)
    return jax.eval_shape(
        lambda: weighted_grad.update(weighted_grad.init(num_terms), *args, **more)
    )


BAD = {
    "argnums": (
        lambda: value_and_weighted_grad(len, equal(), 1, gramian="rows"),
        ValueError,
        ["argnums", "0", "1"],
    ),
    "aux": (
        lambda: value_and_weighted_grad(len, equal(), has_aux=True, gramian="rows"),
        ValueError,
        ["has_aux", "False", "True"],
    ),
    "no rows": (lambda: updated({"w": 1.0}), ValueError, ["rows", "found 1"]),
    "number": (lambda: updated(num_terms=4), ValueError, ["4 rows", "(3, 4)"]),
    "owners": (
        lambda: updated(row_terms=np.zeros(3)),
        TypeError,
        ["row_terms", "integers", "float"],
    ),
    "weights": (
        lambda: updated(row_weights=np.ones(2)),
        ValueError,
        ["row_weights", "(3,)", "(2,)"],
    ),
    "mean": (
        lambda: updated(fn=lambda p, x: jnp.mean(x @ p["w"])),
        ValueError,
        ["one loss for each row", "(1,)", "()"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(own_errors, case):
    call, error, words = BAD[case]
    with pytest.raises(error) as info:
        call()
    assert_message(info.value, "value_and_weighted_grad", *words)


@jax.jit
def normalised(p, x):
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    return jnp.sum(jnp.tanh(x @ p["w"]), axis=1)


def test_rows_that_touch_each_other_are_found():
    params, row_losses, rows, _ = dense()
    check_row_losses(row_losses, params, rows)
    with pytest.raises(ValueError, match="must not depend on other rows") as info:
        check_row_losses(normalised, params, rows)
    assert_message(info.value, "check_row_losses", "3 of 3 rows", "alone", "atch norm")
