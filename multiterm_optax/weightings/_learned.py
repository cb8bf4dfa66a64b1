"""Weights, or what makes them, that an ordinary optimizer learns: one number a term."""

import jax
import jax.numpy as jnp
import optax

from multiterm_optax._weighting import Problem


def step(
    problem: Problem,
    learner: optax.GradientTransformation,
    gradient: jax.Array,
    state: optax.OptState,
    values: jax.Array,
) -> tuple[jax.Array, optax.OptState]:
    """One step of ``learner`` on values [K], of which an absent term's state stays.

    A count of steps, which belongs to all terms, moves on.
    """
    moved, new_state = learner.update(gradient, state, values)
    learned = jnp.asarray(optax.apply_updates(values, moved))
    if problem.present is not None:
        by_term = optax.tree.map_params(
            learner, lambda _: True, state, transform_non_params=lambda _: False
        )
        new_state = jax.tree.map(
            lambda own, new, old: problem.keep_absent(new, old) if own else new,
            by_term,
            new_state,
            state,
        )
    return learned, new_state
