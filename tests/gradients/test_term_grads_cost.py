"""What a term does not touch costs nothing.

Flops are XLA's own count, before it compiles: within 2 % of the count after.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import value_and_term_grads


def flops(fn, *args):
    return jax.jit(fn).lower(*args).cost_analysis()["flops"]


def network(*sizes):
    """Layers to count flops with: their entries do not matter."""
    return [np.full(shape, 0.1, np.float32) for shape in itertools.pairwise(sizes)]


def forward(layers, x):
    for layer in layers:
        x = jnp.tanh(x @ layer)
    return x


@pytest.mark.parametrize("form", ["dict", "stack", "array", "weighted", "negated"])
def test_penalty_costs_nothing(form):
    params = network(16, 32, 32, 4)
    x = np.ones((64, 16), np.float32)

    def both(params, x):
        task = jnp.mean((forward(params, x) - 1) ** 2)
        return task, sum(jnp.sum(w**2) for w in params)

    forms = {
        "dict": lambda *a: dict(zip(("task", "l2"), both(*a), strict=True)),
        "stack": lambda *a: jnp.stack(both(*a)),
        "array": lambda *a: jnp.array(both(*a)),
        "weighted": lambda *a: jnp.array([1.0, 1e-4]) * jnp.stack(both(*a)),
        "negated": lambda *a: -jnp.stack(both(*a)),
    }
    ratio = flops(value_and_term_grads(forms[form]), params, x) / flops(
        jax.value_and_grad(lambda *a: sum(both(*a))), params, x
    )
    assert ratio <= 1.05


@pytest.mark.parametrize("stacked", [False, True], ids=["dict", "stack"])
def test_heads_cost_one_pass_each(stacked):
    heads = 4
    params = {
        "trunk": network(16, 32, 32),
        "heads": {f"h{i}": network(32, 24, 3) for i in range(heads)},
    }
    x = np.ones((64, 16), np.float32)

    def head_loss(head, hidden):
        return jnp.mean((forward(head, hidden) - 1) ** 2)

    def losses_fn(params, x):
        hidden = forward(params["trunk"], x)
        losses = {k: head_loss(h, hidden) for k, h in params["heads"].items()}
        return jnp.stack(list(losses.values())) if stacked else losses

    found = flops(value_and_term_grads(losses_fn), params, x)
    head, trunk = params["heads"]["h0"], params["trunk"]
    hidden = np.ones((64, 32), np.float32)
    trunk_forward = flops(forward, trunk, x)
    trunk_both = flops(
        lambda t, x: jax.vjp(lambda t: forward(t, x), t)[1](hidden), trunk, x
    )
    one_head = flops(jax.value_and_grad(head_loss, (0, 1)), head, hidden)
    expected = trunk_forward + heads * (trunk_both - trunk_forward) + heads * one_head
    assert found <= 1.05 * expected


def test_unrolled_passes_share_the_forward_pass():
    params = network(16, 32, 32, 3)
    x = np.ones((64, 16), np.float32)

    def losses_fn(params, x):
        return jnp.mean((forward(params, x) - 1) ** 2, axis=0)

    one_forward = flops(losses_fn, params, x)
    one_pair = flops(jax.value_and_grad(lambda *a: losses_fn(*a).sum()), params, x)
    found = flops(value_and_term_grads(losses_fn, passes="unroll"), params, x)
    assert found <= 1.05 * (one_forward + 3 * (one_pair - one_forward))
