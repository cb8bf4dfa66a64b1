"""Complex parameters: the gradients of jax.grad, and the way through an optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt

RNG = np.random.default_rng(0)
PARAMS = {
    "x": RNG.normal(size=2).astype(np.float32),
    "z": (RNG.normal(size=3) + 1j * RNG.normal(size=3)).astype(np.complex64),
}
TARGETS = (RNG.normal(size=(3, 3)) + 1j * RNG.normal(size=(3, 3))).astype(np.complex64)


def losses_fn(params, targets=TARGETS):
    moved = params["z"] ** 2 + params["x"].sum() * params["z"]
    errors = jnp.sum(jnp.abs(moved - targets) ** 2, axis=1)
    return {"a": errors[0], "b": 100.0 * errors[1], "re": jnp.sum(moved.real)}


def by_hand(params):
    """The derivatives with respect to x, to Re z and to Im z, in float64."""
    x, z = (np.asarray(params[k], wide) for k, wide in (("x", float), ("z", complex)))
    moved, inner = z**2 + x.sum() * z, 2 * z + x.sum()
    # dL = Re(conj(e) d moved) for these e, and moved is holomorphic in z.
    e = [2 * (moved - TARGETS[0]), 200 * (moved - TARGETS[1]), np.ones(3)]
    along = np.stack([np.conj(one) * inner for one in e])
    of_x = np.stack([np.full(2, (np.conj(one) * z).sum().real) for one in e])
    return of_x, np.real(along), -np.imag(along)


@jax.jit
def each_gradient(params):
    return [
        jax.grad(lambda p, term=term: losses_fn(p)[term])(params)
        for term in ("a", "b", "re")
    ]


@pytest.mark.parametrize("passes", ["unroll", "vmap", "loop"])
def test_gradients_are_those_of_jax_grad(passes, record_deviation):
    gradients = jax.jit(mt.value_and_term_grads(losses_fn, passes=passes))
    _, grads = jax.tree.map(np.asarray, gradients(PARAMS))
    assert grads["z"].dtype == jnp.complex64
    assert grads["x"].dtype == jnp.float32
    for i, alone in enumerate(each_gradient(PARAMS)):
        np.testing.assert_allclose(grads["x"][i], alone["x"], rtol=2e-6)
        np.testing.assert_allclose(grads["z"][i], alone["z"], rtol=2e-6)

    of_x, of_real, of_imaginary = by_hand(PARAMS)
    size = np.abs(of_real + 1j * of_imaginary).max(axis=1, keepdims=True)
    deviation = np.abs(grads["z"] - (of_real - 1j * of_imaginary)) / size
    record_deviation("value_and_term_grads, complex", deviation.max())
    assert deviation.max() < 1e-6
    np.testing.assert_allclose(grads["x"], of_x, rtol=2e-6)


def test_term_grads_and_single_complex_array():
    losses_fn = lambda z: jnp.stack([jnp.abs(z) ** 2, z.real])  # noqa: E731
    grads = jax.jit(mt.term_grads(losses_fn))(1.0 + 2.0j)
    np.testing.assert_allclose(grads, [2.0 - 4.0j, 1.0])


OPTIMIZERS = {
    "mtadam": lambda: mt.mtadam(3e-2, 2),
    "balanced": lambda: mt.balanced(optax.adam(3e-2), 2),
    "mgda": lambda: mt.weighted(mt.mgda(), optax.adam(3e-2), 2),
}


@pytest.mark.parametrize(
    "name", ["mtadam", "mgda", pytest.param("balanced", marks=pytest.mark.slow)]
)
def test_split_optimizer_takes_the_step_of_two_real_leaves(name):
    """Of the conjugate gradients, as Optax expects them."""

    def errors(params):
        losses = losses_fn(params)
        return {"a": losses["a"], "b": losses["b"]}

    tx = optax.contrib.split_real_and_imaginary(OPTIMIZERS[name]())
    real_tx = OPTIMIZERS[name]()

    def of_pairs(pairs):
        return errors({"x": pairs["x"], "z": pairs["re"] + 1j * pairs["im"]})

    @jax.jit
    def train(params, pairs):
        def step(carry, _):
            params, state, pairs, real_state = carry
            grads = jax.tree.map(jnp.conj, mt.term_grads(errors)(params))
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            real_grads = mt.term_grads(of_pairs)(pairs)
            updates, real_state = real_tx.update(real_grads, real_state, pairs)
            pairs = optax.apply_updates(pairs, updates)
            return (params, state, pairs, real_state), None

        start = params, tx.init(params), pairs, real_tx.init(pairs)
        (params, _, pairs, _), _ = jax.lax.scan(step, start, length=30)
        return params, pairs

    pairs = {"x": PARAMS["x"], "re": PARAMS["z"].real, "im": PARAMS["z"].imag}
    params, pairs = jax.tree.map(np.asarray, train(PARAMS, pairs))
    np.testing.assert_allclose(params["z"].real, pairs["re"], rtol=1e-3)
    np.testing.assert_allclose(params["z"].imag, pairs["im"], rtol=1e-3)
    assert not np.allclose(params["z"], PARAMS["z"], rtol=0.1)


def test_other_functions_and_optimizers_name_the_way():
    fn = mt.value_and_weighted_grad(losses_fn, mt.mgda())
    with pytest.raises(TypeError, match="real and imaginary parts as two leaves"):
        jax.eval_shape(lambda p: fn.update(fn.init(3), p), PARAMS)
    with pytest.raises(TypeError, match="real and imaginary parts as two leaves"):
        jax.eval_shape(mt.value_and_one_grad(losses_fn), 0, PARAMS)
    tx = mt.balanced(optax.adam(1e-2), 3)
    grads = jax.tree.map(lambda p: np.stack([p] * 3), PARAMS)
    with pytest.raises(TypeError, match="split_real_and_imaginary around"):
        jax.eval_shape(lambda g, p: tx.update(g, tx.init(p), p), grads, PARAMS)
