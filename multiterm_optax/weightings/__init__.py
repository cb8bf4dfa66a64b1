"""(gramian, losses) -> weights: one method a file.

A weighting is ``Weighting(init(num_terms) -> state, update(gramian, state, *,
losses) -> (weights, state))``. It sees the K x K dot products of the terms'
gradients, or their losses, never a parameter; the weights it returns are ``[K]``,
or a mixing matrix ``[K, K]``.
"""

from multiterm_optax.weightings._constant import FixedState as FixedState
from multiterm_optax.weightings._constant import constant as constant
from multiterm_optax.weightings._constant import equal as equal
from multiterm_optax.weightings._mgda import inexact_mgda as inexact_mgda
from multiterm_optax.weightings._mgda import InexactMGDAState as InexactMGDAState
from multiterm_optax.weightings._mgda import mgda as mgda
from multiterm_optax.weightings._mgda import MGDAState as MGDAState
