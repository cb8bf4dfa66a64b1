"""K -> 1: stages that remove the term axis.

A stage of this floor is an Optax transformation that takes updates whose every
leaf is ``[K, *p]`` and returns leaves ``[*p]``. A chain has exactly one, and any
ordinary Optax transformation may follow it.
"""

from multiterm_optax.aggregators._grad_drop import GradDropState as GradDropState
from multiterm_optax.aggregators._grad_drop import grad_drop as grad_drop
from multiterm_optax.aggregators._max_adam import (
    ScaleByMaxAdamState as ScaleByMaxAdamState,
)
from multiterm_optax.aggregators._max_adam import (
    scale_by_max_adam as scale_by_max_adam,
)
from multiterm_optax.aggregators._median_terms import median_terms as median_terms
from multiterm_optax.aggregators._one_at_a_time import (
    OneAtATimeState as OneAtATimeState,
)
from multiterm_optax.aggregators._one_at_a_time import one_at_a_time as one_at_a_time
from multiterm_optax.aggregators._sum_terms import sum_terms as sum_terms
from multiterm_optax.aggregators._trimmed_mean import trimmed_mean as trimmed_mean
