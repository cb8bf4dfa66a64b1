"""The last stages, which all optimizers with a learning rate share."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Scalar
from multiterm_optax.aggregators import sum_terms

# The stages that optimizers are made of.
PARTS = ("balance_by_norm", "per_term", "scale_by_max_adam", "sum_terms")


def sum_of_steps(
    weights: Any, num_terms: int, name: str
) -> optax.GradientTransformationExtraArgs:
    """The sum of the terms' own steps, each times its weight if weights are given."""
    if weights is None:
        return sum_terms()
    _checks.vector(weights, "weights", name, num_terms)

    def update_fn(
        step: Step, state: optax.EmptyState
    ) -> tuple[optax.Updates, optax.EmptyState]:
        factors = _checks.vector(weights, "weights", name, num_terms)
        total = partial(_terms.weighted_sum, factors)
        return jax.tree.map(total, step.updates), state

    return _stages.stage(
        name, num_terms, optax.init_empty_state, update_fn, checks_state=False
    )


def step(
    stages: Sequence[optax.GradientTransformation],
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: Scalar | None,
    mask: Any,
    name: str,
) -> optax.GradientTransformationExtraArgs:
    """The stages, then decoupled weight decay if asked for, then the learning rate."""
    if not callable(learning_rate):
        _checks.in_range(
            learning_rate, "learning_rate", name, open_low=True, open_high=True
        )
    if weight_decay is not None:
        _checks.in_range(
            weight_decay, "weight_decay", name, open_low=True, open_high=True
        )
        stages = [*stages, optax.add_decayed_weights(weight_decay, mask)]
    tx = optax.chain(*stages, optax.scale_by_learning_rate(learning_rate))
    return _stages.speaking_as(name, tx, *PARTS)
