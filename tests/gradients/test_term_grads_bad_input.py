"""What value_and_term_grads refuses, and what its messages name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax import value_and_term_grads
from tests._asserts import assert_message


def errors_of(losses_fn, *args, **options):
    return lambda: value_and_term_grads(losses_fn, **options)(*args)


W = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (errors_of(lambda w: w, np.ones((2, 3))), TypeError, ["losses_fn", "(2, 3)"]),
        (
            errors_of(lambda w: {"a": w, "b": jnp.sum(w)}, W),
            TypeError,
            ["losses['a']", "K scalars", "(3,)"],
        ),
        (
            errors_of(lambda w: [w, w], W),
            TypeError,
            ["losses[0]", "array [K] or a pytree of K scalars", "(3,)"],
        ),
        (
            errors_of(lambda w: {"a": jnp.sum(w), "n": jnp.asarray(3)}, W),
            TypeError,
            ["losses['n']", "floating point", "int32"],
        ),
        (
            errors_of(lambda w: jnp.sum(w) * 1j, W),
            TypeError,
            ["losses", "real floating point", "complex64"],
        ),
        (errors_of(lambda w: {}, W), ValueError, ["losses_fn", "at least one", "none"]),
        (
            errors_of(lambda w: None, W),
            ValueError,
            ["losses_fn", "at least one", "none"],
        ),
        (
            errors_of(lambda w: w[:0], W),
            ValueError,
            ["losses_fn", "at least one", "[0]"],
        ),
        (
            errors_of(lambda p: jnp.sum(p["w"]), {"w": np.arange(3, dtype=np.int32)}),
            TypeError,
            ["argument 0['w']", "floating point", "int32"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, argnums=1),
            ValueError,
            ["argnums=1", "1 positional"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, argnums=(0, -2)),
            ValueError,
            ["argnums=-2", "1 positional"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, has_aux=True),
            TypeError,
            ["has_aux", "(losses, aux)", "found"],
        ),
        (
            errors_of(lambda w: (jnp.sum(w), 1, 2), W, has_aux=True),
            TypeError,
            ["has_aux", "(losses, aux)", "tuple"],
        ),
        (
            errors_of(lambda w: jnp.sum(w), W, passes="scan"),
            ValueError,
            ["passes", "'unroll', 'vmap', 'loop'", "'scan'"],
        ),
    ],
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_bad_input_is_named(own_errors, call, error, words, jit):
    with pytest.raises(error) as caught:
        jax.jit(call)() if jit else call()
    assert_message(caught.value, *words)


@pytest.mark.parametrize("passes", ["vmap", "loop", "unroll"])
def test_non_scalar_losses_are_refused_by_every_way(own_errors, passes):
    with pytest.raises(TypeError, match="K scalars"):
        value_and_term_grads(lambda w: [w, w], passes=passes)(W)
