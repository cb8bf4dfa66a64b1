"""Shapes by name: the vocabulary of every signature below this floor.

``K`` is the number of terms; ``*p`` the shape of one parameter leaf. The
annotations document; they are enforced at run time in the tests only.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PyTree, Shaped

Losses = Float[Array, " K"]
Weights = Float[Array, " K"]
Mixing = Float[Array, "K K"]
Gramian = Float[Array, "K K"]
Norms = Float[Array, " K"]
TermLeaf = Shaped[Array, "K *p"]
Leaf = Shaped[Array, "*p"]

# Every leaf [K, *p], p varying from leaf to leaf; None leaves are empty subtrees.
TermGrads = PyTree[Shaped[Array, "K ..."]]

LossesFn = Callable[..., Any]
# A hyperparameter: a number, perhaps traced.
Scalar = int | float | jax.Array
