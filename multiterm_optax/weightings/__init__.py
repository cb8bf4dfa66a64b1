"""(gramian, losses) -> weights. Each file holds one method or a family of methods.

A weighting is ``Weighting(init(num_terms) -> state, update(gramian, state, *,
losses) -> (weights, state))``. It sees the K x K dot products of the terms'
gradients, or their losses, never a parameter; the weights it returns are ``[K]``,
or a mixing matrix ``[K, K]``. A step with absent terms is that of the smaller problem
without them, and their part of the state stays as it was.
"""

from multiterm_optax._weighting import Weighting as Weighting
from multiterm_optax.weightings._adaptive_weight import (
    adaptive_weight as adaptive_weight,
)
from multiterm_optax.weightings._aligned_mtl import aligned_mtl as aligned_mtl
from multiterm_optax.weightings._by_loss import ByLossState as ByLossState
from multiterm_optax.weightings._by_loss import by_loss as by_loss
from multiterm_optax.weightings._by_norm import ByNormState as ByNormState
from multiterm_optax.weightings._by_norm import by_norm as by_norm
from multiterm_optax.weightings._cagrad import CAGradState as CAGradState
from multiterm_optax.weightings._cagrad import cagrad as cagrad
from multiterm_optax.weightings._causal import causal as causal
from multiterm_optax.weightings._chebyshev import ChebyshevState as ChebyshevState
from multiterm_optax.weightings._chebyshev import chebyshev as chebyshev
from multiterm_optax.weightings._coefficient_of_variation import (
    CoefficientOfVariationState as CoefficientOfVariationState,
)
from multiterm_optax.weightings._coefficient_of_variation import (
    coefficient_of_variation as coefficient_of_variation,
)
from multiterm_optax.weightings._compose import ComposeState as ComposeState
from multiterm_optax.weightings._compose import compose as compose
from multiterm_optax.weightings._config import config as config
from multiterm_optax.weightings._constant import FixedState as FixedState
from multiterm_optax.weightings._constant import constant as constant
from multiterm_optax.weightings._constant import equal as equal
from multiterm_optax.weightings._cosmos import cosmos as cosmos
from multiterm_optax.weightings._cr_mogm import CRMOGMState as CRMOGMState
from multiterm_optax.weightings._cr_mogm import cr_mogm as cr_mogm
from multiterm_optax.weightings._dual_cone import DualConeState as DualConeState
from multiterm_optax.weightings._dual_cone import dual_proj as dual_proj
from multiterm_optax.weightings._dual_cone import upgrad as upgrad
from multiterm_optax.weightings._dwa import DWAState as DWAState
from multiterm_optax.weightings._dwa import dwa as dwa
from multiterm_optax.weightings._excess import ExcessState as ExcessState
from multiterm_optax.weightings._excess import excess as excess
from multiterm_optax.weightings._fair_grad import FairGradState as FairGradState
from multiterm_optax.weightings._fair_grad import fair_grad as fair_grad
from multiterm_optax.weightings._famo import FAMOState as FAMOState
from multiterm_optax.weightings._famo import famo as famo
from multiterm_optax.weightings._frozen import FrozenState as FrozenState
from multiterm_optax.weightings._frozen import frozen as frozen
from multiterm_optax.weightings._geometric_mean import geometric_mean as geometric_mean
from multiterm_optax.weightings._grad_norm_balance import (
    GradNormBalanceState as GradNormBalanceState,
)
from multiterm_optax.weightings._grad_norm_balance import (
    grad_norm_balance as grad_norm_balance,
)
from multiterm_optax.weightings._grad_vac import GradVacState as GradVacState
from multiterm_optax.weightings._grad_vac import grad_vac as grad_vac
from multiterm_optax.weightings._gradnorm import GradNormState as GradNormState
from multiterm_optax.weightings._gradnorm import gradnorm as gradnorm
from multiterm_optax.weightings._imtl_g import IMTLGState as IMTLGState
from multiterm_optax.weightings._imtl_g import imtl_g as imtl_g
from multiterm_optax.weightings._imtl_l import IMTLLState as IMTLLState
from multiterm_optax.weightings._imtl_l import imtl_l as imtl_l
from multiterm_optax.weightings._inexact_mgda import (
    InexactMGDAState as InexactMGDAState,
)
from multiterm_optax.weightings._inexact_mgda import inexact_mgda as inexact_mgda
from multiterm_optax.weightings._krum import krum as krum
from multiterm_optax.weightings._lagrangian import LagrangianState as LagrangianState
from multiterm_optax.weightings._lagrangian import lagrangian as lagrangian
from multiterm_optax.weightings._lbtw import LBTWState as LBTWState
from multiterm_optax.weightings._lbtw import lbtw as lbtw
from multiterm_optax.weightings._mgda import MGDAState as MGDAState
from multiterm_optax.weightings._mgda import mgda as mgda
from multiterm_optax.weightings._nash_mtl import NashMTLState as NashMTLState
from multiterm_optax.weightings._nash_mtl import nash_mtl as nash_mtl
from multiterm_optax.weightings._ntk import NTKState as NTKState
from multiterm_optax.weightings._ntk import ntk as ntk
from multiterm_optax.weightings._pbi import pbi as pbi
from multiterm_optax.weightings._pcgrad import PCGradState as PCGradState
from multiterm_optax.weightings._pcgrad import pcgrad as pcgrad
from multiterm_optax.weightings._random_weights import (
    RandomWeightsState as RandomWeightsState,
)
from multiterm_optax.weightings._random_weights import random_weights as random_weights
from multiterm_optax.weightings._relobralo import ReLoBRaLoState as ReLoBRaLoState
from multiterm_optax.weightings._relobralo import relobralo as relobralo
from multiterm_optax.weightings._soft_uncertainty import (
    soft_uncertainty as soft_uncertainty,
)
from multiterm_optax.weightings._softadapt import SoftAdaptState as SoftAdaptState
from multiterm_optax.weightings._softadapt import softadapt as softadapt
from multiterm_optax.weightings._stch import stch as stch
from multiterm_optax.weightings._uncertainty import UncertaintyState as UncertaintyState
from multiterm_optax.weightings._uncertainty import uncertainty as uncertainty
