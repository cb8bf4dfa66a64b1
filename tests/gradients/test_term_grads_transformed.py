"""Per-term gradients of functions with control flow, under vmap, and differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import term_grads, value_and_term_grads
from tests._asserts import CountedTraces, assert_close, assert_single_trace

PASSES = ["unroll", "vmap", "loop"]


@jax.custom_vjp
def clipped(v):
    return v**2


clipped.defvjp(lambda v: (v**2, v), lambda v, g: (jnp.clip(2 * v * g, -1.0, 1.0),))

BODIES = {
    "custom_vjp": lambda w: jnp.sum(clipped(w)),
    "custom_jvp": lambda w: jnp.sum(jax.nn.relu(w)),
    "scan": lambda w: jax.lax.scan(lambda c, v: (jnp.sin(c * v), None), 1.0, w)[0],
    "map": lambda w: jnp.sum(jax.lax.map(jnp.exp, w)),
    "cond": lambda w: jax.lax.cond(w[0] > 0, jnp.sum, lambda v: jnp.sum(v**2), w),
    "fori": lambda w: jax.lax.fori_loop(0, 3, lambda _, c: c * jnp.sum(w), 1.0),
    "remat": lambda w: jax.checkpoint(lambda v: jnp.sum(jnp.tanh(v) ** 2))(w),
    "jit": lambda w: jax.jit(lambda v: jnp.prod(v))(w),
    "stop_gradient": lambda w: jnp.sum(w * jax.lax.stop_gradient(w)),
    "while outside": lambda w: (
        jnp.sum(w) * jax.lax.while_loop(lambda c: c < 9, lambda c: c + 2, jnp.zeros(()))
    ),
    "integers inside": lambda w: jnp.sum(w[jnp.argsort(w)[:2]]),
}


BODY_CASES = [(body, None) for body in BODIES]
BODY_CASES += [("custom_vjp", "vmap"), ("cond", "vmap"), ("scan", "vmap")]
BODY_CASES += [("scan", "loop")]


@jax.jit
def found_for_every_body(w):
    """Gradients of two terms, in a list and in an array, and those of jax.grad."""

    def other(v):
        return jnp.sum(jnp.cos(v))

    def found(body, passes, form):
        losses_fn = lambda v: form([BODIES[body](v), other(v)])  # noqa: E731
        return term_grads(losses_fn, passes=passes)(w)

    alone = {body: jax.grad(function)(w) for body, function in BODIES.items()}
    return (
        alone,
        jax.grad(other)(w),
        {
            (body, str(passes)): [
                found(body, passes, list),
                found(body, passes, jnp.stack),
            ]
            for body, passes in BODY_CASES
        },
    )


@pytest.mark.parametrize(("body", "passes"), BODY_CASES)
def test_control_flow_and_custom_derivatives(x64, passes, body):
    alone, other, found = found_for_every_body(np.array([0.4, -1.2, 2.0]))
    expected = np.stack([alone[body], other])
    assert_close(found[body, str(passes)], [expected, expected], rtol=1e-13)


@pytest.mark.parametrize("passes", PASSES)
def test_vmap_over_a_batch(x64, passes):
    def losses_fn(w, x):
        return {"a": jnp.sum(w * x) ** 2, "b": jnp.sum(w**3)}

    w, xs = np.arange(1.0, 4.0), np.arange(6.0).reshape(2, 3)
    fn = value_and_term_grads(losses_fn, passes=passes)
    losses, grads = jax.jit(jax.vmap(fn, in_axes=(None, 0)))(w, xs)
    products = xs @ w
    assert_close(losses, {"a": products**2, "b": np.full(2, np.sum(w**3))}, rtol=1e-13)
    expected = [[2 * y * x, 3 * w**2] for x, y in zip(xs, products, strict=True)]
    assert_close(grads, np.array(expected), rtol=1e-13)


@pytest.mark.parametrize(
    ("stacked", "passes"),
    [(False, "unroll"), (True, "unroll"), (True, "vmap"), (False, "loop")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [(False, "vmap"), (True, "loop")]
    ],
)
def test_second_derivatives(x64, passes, stacked):
    def losses_fn(w):
        terms = [jnp.sum(jnp.sin(w) ** 2), jnp.prod(w)]
        return jnp.stack(terms) if stacked else terms

    w, v = np.array([0.3, -0.5, 1.1]), np.array([1.0, 2.0, -1.0])
    fn = term_grads(losses_fn, passes=passes)

    @jax.jit
    def derivatives(w, v):
        along = jax.jvp(fn, (w,), (v,))[1]
        return along, jax.grad(lambda w: jnp.sum(fn(w) ** 2))(w)

    along, of_penalty = derivatives(w, v)
    # By hand: sum(sin^2) has the gradient sin(2 w), the product one of two factors.
    gradients = np.stack([np.sin(2 * w), w.prod() / w])
    hessians = [np.diag(2 * np.cos(2 * w)), w.prod() / np.outer(w, w)]
    np.fill_diagonal(hessians[1], 0)
    assert_close(along, np.stack([h @ v for h in hessians]), rtol=1e-12)
    expected = sum(2 * h @ g for h, g in zip(hessians, gradients, strict=True))
    assert_close(of_penalty, expected, rtol=1e-12)


@pytest.mark.parametrize("passes", PASSES)
def test_the_forward_pass_is_traced_once(passes):
    counted = CountedTraces(lambda w: [jnp.sum(w**2), jnp.sum(w), jnp.prod(w)])

    def losses_fn(w):
        return counted(w)

    fn = jax.jit(value_and_term_grads(losses_fn, passes=passes))
    for _ in range(3):
        fn.eval_shape(np.ones(4, np.float32))
    assert_single_trace(counted)
