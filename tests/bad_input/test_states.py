"""States of other transformations, and shapes that only a state reveals."""

import jax
import jax.numpy as jnp
import optax
import pytest

from tests import _factories
from tests._asserts import (
    assert_message,
)
from tests.bad_input._step import (
    PARAMS,
    each_factory,
    grads,
    step,
)

# The library's own messages, as a user without a type checker sees them.
pytestmark = pytest.mark.usefixtures("own_errors")


@each_factory
def test_a_state_of_other_terms_is_refused(factory):
    losses = _factories.example_losses()
    tx = factory.build()
    assert step(tx, grads(_factories.TERMS), losses=losses)
    shapes = [
        [leaf.shape for leaf in jax.tree.leaves(one.init(PARAMS))]
        for one in (tx, factory.build(num_terms=1), factory.build(num_terms=4))
    ]
    if shapes[0] == shapes[1]:
        return  # nothing in the state tells
    for terms in (1, 4):
        state = factory.build(num_terms=terms).init(PARAMS)
        with pytest.raises(ValueError, match="state") as caught:
            step(tx, grads(_factories.TERMS), state=state, losses=losses)
        assert_message(caught.value, "must have", f"({terms},", "number of terms")


@each_factory
def test_a_state_of_another_transformation_is_refused(factory):
    tx = factory.build()
    if not jax.tree.leaves(tx.init(PARAMS)):
        return
    others = {
        "trace": optax.trace(0.9).init(PARAMS),
        "chain": optax.chain(optax.adam(0.1), optax.trace(0.9)).init(PARAMS),
    }
    for state in others.values():
        with pytest.raises((TypeError, ValueError)):
            step(
                tx,
                grads(_factories.TERMS),
                state=state,
                losses=_factories.example_losses(),
            )


# Without params a leaf whose first axis happens to have K entries may pass for one with
# the term axis. A state that knows the parameters' shapes tells.
@each_factory
def test_ambiguous_shapes_without_params(factory):
    params = {"w": jnp.ones((_factories.TERMS, 2))}
    tx, losses = factory.build(), _factories.example_losses()
    state = tx.init(params)
    knows = any(leaf.shape[-2:] == params["w"].shape for leaf in jax.tree.leaves(state))
    if not knows:
        return  # docs/errors.md: give params
    with pytest.raises((ValueError, TypeError)):
        step(tx, params, None, state=state, losses=losses)
    with pytest.raises(ValueError, match="term axis"):
        step(tx, params, params, state=state, losses=losses)
