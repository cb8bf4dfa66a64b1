"""Learns one number for each term with an ordinary optimizer."""

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
    """Takes one step of ``learner`` on values [K].

    The parts of its state that belong to absent terms stay. A count of steps, which
    belongs to all terms, goes up.
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
