"""Wrappers around whole optimizers: stages that own an inner transformation.

A wrapper of this floor takes per-term gradients, every leaf ``[K, *p]``, and returns
updates ``[*p]``. The inner transformation of ``weighted`` is an ordinary one. The other
wrappers take one that is itself K -> 1; they replace the Optax wrappers of the same
names, which would lose track of the term axis.
"""

from multiterm_optax.wrappers._apply_if_finite import (
    ApplyIfFiniteState as ApplyIfFiniteState,
)
from multiterm_optax.wrappers._apply_if_finite import (
    apply_if_finite as apply_if_finite,
)
from multiterm_optax.wrappers._chain import chain as chain
from multiterm_optax.wrappers._masked import masked as masked
from multiterm_optax.wrappers._multi_steps import MultiStepsState as MultiStepsState
from multiterm_optax.wrappers._multi_steps import multi_steps as multi_steps
from multiterm_optax.wrappers._weighted import WeightedState as WeightedState
from multiterm_optax.wrappers._weighted import weighted as weighted
