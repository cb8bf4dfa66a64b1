"""Optax transformations for several loss terms at once.

losses_fn -> losses [K] and per-term gradients [K, *p] -> balance (K -> K)
-> aggregate (K -> 1) -> any ordinary Optax transformation. The exports below
follow that flow.
"""

# isort: off

from multiterm_optax._version import __version__ as __version__

# losses_fn -> losses, per-term gradients; or weights first, then one gradient
from multiterm_optax.gradients import ntk_traces as ntk_traces
from multiterm_optax.gradients import residual_attention as residual_attention
from multiterm_optax.gradients import stack_terms as stack_terms
from multiterm_optax.gradients import term_grads as term_grads
from multiterm_optax.gradients import value_and_max_adam as value_and_max_adam
from multiterm_optax.gradients import value_and_one_grad as value_and_one_grad
from multiterm_optax.gradients import check_row_losses as check_row_losses
from multiterm_optax.gradients import value_and_feature_grad as value_and_feature_grad
from multiterm_optax.gradients import value_and_row_grads as value_and_row_grads
from multiterm_optax.gradients import value_and_term_grads as value_and_term_grads
from multiterm_optax.gradients import value_and_weighted_grad as value_and_weighted_grad

# (gramian, losses) -> weights
from multiterm_optax.weightings import Weighting as Weighting
from multiterm_optax.weightings import adaptive_weight as adaptive_weight
from multiterm_optax.weightings import by_loss as by_loss
from multiterm_optax.weightings import by_norm as by_norm
from multiterm_optax.weightings import cagrad as cagrad
from multiterm_optax.weightings import causal as causal
from multiterm_optax.weightings import (
    coefficient_of_variation as coefficient_of_variation,
)
from multiterm_optax.weightings import aligned_mtl as aligned_mtl
from multiterm_optax.weightings import chebyshev as chebyshev
from multiterm_optax.weightings import compose as compose
from multiterm_optax.weightings import config as config
from multiterm_optax.weightings import constant as constant
from multiterm_optax.weightings import cosmos as cosmos
from multiterm_optax.weightings import cr_mogm as cr_mogm
from multiterm_optax.weightings import dual_proj as dual_proj
from multiterm_optax.weightings import dwa as dwa
from multiterm_optax.weightings import equal as equal
from multiterm_optax.weightings import excess as excess
from multiterm_optax.weightings import famo as famo
from multiterm_optax.weightings import fair_grad as fair_grad
from multiterm_optax.weightings import frozen as frozen
from multiterm_optax.weightings import grad_norm_balance as grad_norm_balance
from multiterm_optax.weightings import geometric_mean as geometric_mean
from multiterm_optax.weightings import grad_vac as grad_vac
from multiterm_optax.weightings import gradnorm as gradnorm
from multiterm_optax.weightings import imtl_l as imtl_l
from multiterm_optax.weightings import imtl_g as imtl_g
from multiterm_optax.weightings import inexact_mgda as inexact_mgda
from multiterm_optax.weightings import lagrangian as lagrangian
from multiterm_optax.weightings import lbtw as lbtw
from multiterm_optax.weightings import mgda as mgda
from multiterm_optax.weightings import ntk as ntk
from multiterm_optax.weightings import nash_mtl as nash_mtl
from multiterm_optax.weightings import pcgrad as pcgrad
from multiterm_optax.weightings import relobralo as relobralo
from multiterm_optax.weightings import soft_uncertainty as soft_uncertainty
from multiterm_optax.weightings import krum as krum
from multiterm_optax.weightings import pbi as pbi
from multiterm_optax.weightings import random_weights as random_weights
from multiterm_optax.weightings import softadapt as softadapt
from multiterm_optax.weightings import stch as stch
from multiterm_optax.weightings import uncertainty as uncertainty
from multiterm_optax.weightings import upgrad as upgrad

# K -> K
from multiterm_optax.transforms import balance_by_norm as balance_by_norm
from multiterm_optax.transforms import dual_balanced as dual_balanced
from multiterm_optax.transforms import inverse_dirichlet as inverse_dirichlet
from multiterm_optax.transforms import lr_annealing as lr_annealing
from multiterm_optax.transforms import output_balance as output_balance
from multiterm_optax.transforms import db_mtl as db_mtl
from multiterm_optax.transforms import excess_mtl as excess_mtl
from multiterm_optax.transforms import moco as moco
from multiterm_optax.transforms import modo as modo
from multiterm_optax.transforms import per_term as per_term
from multiterm_optax.transforms import reweight as reweight
from multiterm_optax.transforms import sdmgrad as sdmgrad

# K -> 1
from multiterm_optax.aggregators import grad_drop as grad_drop
from multiterm_optax.aggregators import one_at_a_time as one_at_a_time
from multiterm_optax.aggregators import median_terms as median_terms
from multiterm_optax.aggregators import scale_by_max_adam as scale_by_max_adam
from multiterm_optax.aggregators import sum_terms as sum_terms
from multiterm_optax.aggregators import trimmed_mean as trimmed_mean

# read-only
from multiterm_optax import metrics as metrics

# around an inner optimizer
from multiterm_optax.wrappers import apply_if_finite as apply_if_finite
from multiterm_optax.wrappers import chain as chain
from multiterm_optax.wrappers import masked as masked
from multiterm_optax.wrappers import multi_steps as multi_steps
from multiterm_optax.wrappers import weighted as weighted

# whole optimizers
from multiterm_optax.optimizers import adaptive_mgda as adaptive_mgda
from multiterm_optax.optimizers import adatask as adatask
from multiterm_optax.optimizers import adatask_adagrad as adatask_adagrad
from multiterm_optax.optimizers import adatask_adam as adatask_adam
from multiterm_optax.optimizers import adatask_rmsprop as adatask_rmsprop
from multiterm_optax.optimizers import balanced as balanced
from multiterm_optax.optimizers import ladatask_rmsprop as ladatask_rmsprop
from multiterm_optax.optimizers import metabalance as metabalance
from multiterm_optax.optimizers import mtadam as mtadam

# pictures, with the extra plotting
from multiterm_optax import plotting as plotting
