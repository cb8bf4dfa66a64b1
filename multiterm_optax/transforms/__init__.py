"""K -> K: stages that keep the term axis.

A stage of this floor is an Optax transformation that takes updates whose every
leaf is ``[K, *p]`` and returns updates of the same shapes. It belongs before the
aggregator in an ``optax.chain``.
"""

from multiterm_optax._reweighting import BalanceByNormState as BalanceByNormState
from multiterm_optax._reweighting import ReweightState as ReweightState
from multiterm_optax.transforms._balance_by_norm import (
    balance_by_norm as balance_by_norm,
)
from multiterm_optax.transforms._db_mtl import db_mtl as db_mtl
from multiterm_optax.transforms._dual_balanced import (
    DualBalancedState as DualBalancedState,
)
from multiterm_optax.transforms._dual_balanced import dual_balanced as dual_balanced
from multiterm_optax.transforms._excess_mtl import ExcessMTLState as ExcessMTLState
from multiterm_optax.transforms._excess_mtl import excess_mtl as excess_mtl
from multiterm_optax.transforms._inverse_dirichlet import (
    InverseDirichletState as InverseDirichletState,
)
from multiterm_optax.transforms._inverse_dirichlet import (
    inverse_dirichlet as inverse_dirichlet,
)
from multiterm_optax.transforms._lr_annealing import (
    LRAnnealingState as LRAnnealingState,
)
from multiterm_optax.transforms._lr_annealing import lr_annealing as lr_annealing
from multiterm_optax.transforms._moco import MoCoState as MoCoState
from multiterm_optax.transforms._moco import moco as moco
from multiterm_optax.transforms._modo import MoDoState as MoDoState
from multiterm_optax.transforms._modo import modo as modo
from multiterm_optax.transforms._output_balance import (
    OutputBalanceState as OutputBalanceState,
)
from multiterm_optax.transforms._output_balance import output_balance as output_balance
from multiterm_optax.transforms._per_term import per_term as per_term
from multiterm_optax.transforms._reweight import reweight as reweight
from multiterm_optax.transforms._sdmgrad import SDMGradState as SDMGradState
from multiterm_optax.transforms._sdmgrad import sdmgrad as sdmgrad
