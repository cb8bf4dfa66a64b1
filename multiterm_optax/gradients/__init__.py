"""From a function of several losses to losses and per-term gradients.

A stage of this floor takes ``losses_fn(params, *args)`` and returns the losses
in the structure they came in, and gradients whose every leaf is ``[K, *p]``:
axis 0 is the term axis, in the order of ``jax.tree.leaves(losses)``.
"""

from multiterm_optax.gradients._term_grads import term_grads as term_grads
from multiterm_optax.gradients._term_grads import (
    value_and_term_grads as value_and_term_grads,
)
