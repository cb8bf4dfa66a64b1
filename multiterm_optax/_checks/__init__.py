"""Refuses bad input at trace time, with messages that name the argument.

Each check says what was expected and what was found. Values that are traced
(schedules, ``optax.inject_hyperparams``) cannot be judged and pass.
"""

from multiterm_optax._checks._hyperparameters import as_int as as_int
from multiterm_optax._checks._hyperparameters import decay as decay
from multiterm_optax._checks._hyperparameters import floating_dtype as floating_dtype
from multiterm_optax._checks._hyperparameters import for_each_leaf as for_each_leaf
from multiterm_optax._checks._hyperparameters import function as function
from multiterm_optax._checks._hyperparameters import in_range as in_range
from multiterm_optax._checks._hyperparameters import non_negative as non_negative
from multiterm_optax._checks._hyperparameters import num_terms as num_terms
from multiterm_optax._checks._hyperparameters import (
    number_or_vector as number_or_vector,
)
from multiterm_optax._checks._hyperparameters import one_of as one_of
from multiterm_optax._checks._hyperparameters import preference as preference
from multiterm_optax._checks._hyperparameters import prng_key as prng_key
from multiterm_optax._checks._hyperparameters import static_int as static_int
from multiterm_optax._checks._hyperparameters import term as term
from multiterm_optax._checks._hyperparameters import term_at as term_at
from multiterm_optax._checks._hyperparameters import term_index as term_index
from multiterm_optax._checks._hyperparameters import transformation as transformation
from multiterm_optax._checks._hyperparameters import vector as vector
from multiterm_optax._checks._states import state as state
from multiterm_optax._checks._states import state_by_term as state_by_term
from multiterm_optax._checks._states import state_keeps_shapes as state_keeps_shapes
from multiterm_optax._checks._updates import arrays as arrays
from multiterm_optax._checks._updates import differentiable as differentiable
from multiterm_optax._checks._updates import floating as floating
from multiterm_optax._checks._updates import losses as losses
from multiterm_optax._checks._updates import present as present
from multiterm_optax._checks._updates import present_in as present_in
from multiterm_optax._checks._updates import real as real
from multiterm_optax._checks._updates import shapes_kept as shapes_kept
from multiterm_optax._checks._updates import term_axis as term_axis
from multiterm_optax._checks._updates import term_axis_removed as term_axis_removed
