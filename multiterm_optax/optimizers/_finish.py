"""The end that all optimizers with a learning rate share."""

from collections.abc import Sequence
from typing import Any

import optax

from multiterm_optax import _checks, _stages
from multiterm_optax._typing import Scalar

# The stages that optimizers are made of.
PARTS = ("balance_by_norm", "per_term", "scale_by_max_adam", "sum_terms")


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
