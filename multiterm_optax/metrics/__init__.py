"""Read-only: how the terms' gradients compare, and which term moves which parameter.

A metric takes per-term gradients, every leaf ``[K, *p]``, or an optimizer's
state, and changes nothing. All are pure functions that may be jitted. Only
``track_dominance`` is a stage of a chain, where it passes its updates on unchanged.
"""

from multiterm_optax.metrics._dominance import (
    TrackDominanceState as TrackDominanceState,
)
from multiterm_optax.metrics._dominance import dominance as dominance
from multiterm_optax.metrics._dominance import dominance_shares as dominance_shares
from multiterm_optax.metrics._dominance import track_dominance as track_dominance
from multiterm_optax.metrics._geometry import alignment as alignment
from multiterm_optax.metrics._geometry import conflicts as conflicts
from multiterm_optax.metrics._geometry import cosines as cosines
from multiterm_optax.metrics._geometry import gramian as gramian
from multiterm_optax.metrics._geometry import norms as norms
from multiterm_optax.metrics._names import named as named
from multiterm_optax.metrics._read import read as read
from multiterm_optax.metrics._signs import Warnings as Warnings
from multiterm_optax.metrics._signs import warnings as warnings
