"""Names for the shapes in the signatures of all other modules.

``K`` is the number of terms; ``*p`` the shape of one parameter leaf. The
annotations are documentation; only the tests enforce them at run time.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Shaped

Losses = Float[Array, " K"]
Weights = Float[Array, " K"]
Mixing = Float[Array, "K K"]
Gramian = Float[Array, "K K"]
Norms = Float[Array, " K"]
TermLeaf = Shaped[Array, "K *p"]
Leaf = Shaped[Array, "*p"]

LossesFn = Callable[..., Any]
# A hyperparameter is a number and may be traced.
Scalar = int | float | jax.Array
