"""Around whole optimizers: stages that own an inner transformation.

A wrapper of this floor takes per-term gradients, every leaf ``[K, *p]``, and an
ordinary Optax transformation, and returns updates ``[*p]``.
"""

from multiterm_optax.wrappers._weighted import WeightedState as WeightedState
from multiterm_optax.wrappers._weighted import weighted as weighted
