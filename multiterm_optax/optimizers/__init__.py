"""Whole optimizers, which are short chains of the stages with a learning rate.

An optimizer takes per-term gradients, every leaf ``[K, *p]``, and returns
updates ``[*p]`` for ``optax.apply_updates``.
"""

from multiterm_optax.optimizers._adaptive_mgda import (
    AdaptiveMGDAState as AdaptiveMGDAState,
)
from multiterm_optax.optimizers._adaptive_mgda import adaptive_mgda as adaptive_mgda
from multiterm_optax.optimizers._adatask import adatask as adatask
from multiterm_optax.optimizers._adatask import adatask_adagrad as adatask_adagrad
from multiterm_optax.optimizers._adatask import adatask_adam as adatask_adam
from multiterm_optax.optimizers._adatask import adatask_rmsprop as adatask_rmsprop
from multiterm_optax.optimizers._balanced import balanced as balanced
from multiterm_optax.optimizers._ladatask import (
    ScaleByLAdaTaskState as ScaleByLAdaTaskState,
)
from multiterm_optax.optimizers._ladatask import ladatask_rmsprop as ladatask_rmsprop
from multiterm_optax.optimizers._metabalance import metabalance as metabalance
from multiterm_optax.optimizers._mtadam import mtadam as mtadam
