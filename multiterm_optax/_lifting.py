"""Takes an Optax transformation over the term axis, with a state for each term."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _shardings, _stages, _terms
from multiterm_optax._stages import Step


def lift(
    inner: optax.GradientTransformation, num_terms: int, name: str
) -> optax.GradientTransformationExtraArgs:
    """Makes a stage that puts each term through ``inner`` by itself."""
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> optax.OptState:
        return jax.vmap(inner.init, in_axes=None, axis_size=num_terms)(params)

    def update_fn(
        step: Step, state: optax.OptState
    ) -> tuple[optax.Updates, optax.OptState]:
        _checks.state_by_term(state, name, num_terms)
        state = _shardings.terms_as(step.updates, state)

        def one_term(update: optax.Updates, one_state: optax.OptState) -> Any:
            extra_args = step.forwarded(present=None)
            return inner.update(update, one_state, step.params, **extra_args)

        stepped = jax.vmap(one_term, axis_size=num_terms)(step.updates, state)
        _checks.shapes_kept(stepped[0], step.updates, name)
        if step.present is None:
            return stepped
        held = jax.tree.map(jnp.zeros_like, stepped[0]), state
        return jax.tree.map(partial(_terms.keep_absent, step.present), stepped, held)

    return _stages.stage(name, num_terms, init_fn, update_fn, checks_state=False)
