"""K -> K: stages that keep the term axis.

A stage of this floor is an Optax transformation that takes updates whose every
leaf is ``[K, *p]`` and returns updates of the same shapes. It belongs before the
aggregator in an ``optax.chain``.
"""

from multiterm_optax._reweighting import BalanceByNormState as BalanceByNormState
from multiterm_optax.transforms._balance_by_norm import (
    balance_by_norm as balance_by_norm,
)
from multiterm_optax.transforms._per_term import per_term as per_term
from multiterm_optax.transforms._reweight import ReweightState as ReweightState
from multiterm_optax.transforms._reweight import reweight as reweight
