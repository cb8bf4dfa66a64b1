"""From a function of several losses to losses and per-term gradients.

A stage of this floor takes ``losses_fn(params, *args)`` and returns the losses, in
their own structure, and gradients whose every leaf is ``[K, *p]``. Axis 0 is the term
axis, in the order of ``jax.tree.leaves(losses)``. Alternatively the weights are found
first, and the result is the gradient of the weighted sum, ``[*p]``.
"""

from multiterm_optax.gradients._check_row_losses import (
    check_row_losses as check_row_losses,
)
from multiterm_optax.gradients._feature_grad import (
    value_and_feature_grad as value_and_feature_grad,
)
from multiterm_optax.gradients._max_adam_grad import MaxAdamGrad as MaxAdamGrad
from multiterm_optax.gradients._max_adam_grad import (
    MaxAdamGradState as MaxAdamGradState,
)
from multiterm_optax.gradients._max_adam_grad import (
    value_and_max_adam as value_and_max_adam,
)
from multiterm_optax.gradients._ntk_traces import ntk_traces as ntk_traces
from multiterm_optax.gradients._one_grad import value_and_one_grad as value_and_one_grad
from multiterm_optax.gradients._residual_attention import (
    ResidualAttention as ResidualAttention,
)
from multiterm_optax.gradients._residual_attention import (
    ResidualAttentionState as ResidualAttentionState,
)
from multiterm_optax.gradients._residual_attention import (
    residual_attention as residual_attention,
)
from multiterm_optax.gradients._row_grads import (
    value_and_row_grads as value_and_row_grads,
)
from multiterm_optax.gradients._stack_terms import stack_terms as stack_terms
from multiterm_optax.gradients._term_grads import term_grads as term_grads
from multiterm_optax.gradients._term_grads import (
    value_and_term_grads as value_and_term_grads,
)
from multiterm_optax.gradients._weighted_grad import WeightedGrad as WeightedGrad
from multiterm_optax.gradients._weighted_grad import (
    WeightedGradState as WeightedGradState,
)
from multiterm_optax.gradients._weighted_grad import (
    value_and_weighted_grad as value_and_weighted_grad,
)
