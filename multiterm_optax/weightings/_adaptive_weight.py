"""VQGAN's adaptive weight brings one term's gradient to the size of another's."""

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting


def adaptive_weight(
    main: int | str = 0,
    auxiliary: int | str = 1,
    max: Scalar = 1e4,
    *,
    eps: Scalar = 1e-8,
    absolute: bool = False,
) -> Weighting:
    r"""Brings one term's gradient to the size of the main one's, within a bound.

    With the main term :math:`m`, such as the reconstruction, and the auxiliary
    :math:`a`, such as the generator's adversarial loss,

    .. math::

      w_a = \min\left( \frac{\lVert g_m \rVert}{\lVert g_a \rVert + e},
      w_{\max} \right), \qquad e = \epsilon \lVert g_m \rVert ,

    and all others have the weight 1.

    Args:
      main: The term that sets the size, by its index or by its name in the losses; 0
        is the first of the sorted names.
      auxiliary: The term that is brought to this size, given in the same way.
      max: :math:`w_{\max}`, positive.
      eps: :math:`\epsilon`, not negative.
      absolute: Whether :math:`e = \epsilon` at any scale; the authors' code uses 1e-4.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads norms and has no state; weights
      [K]. If the main gradient is zero, :math:`w_a = 0`; if the main term is absent, or
      a norm is not finite, :math:`w_a = 1`.

    Raises:
      ValueError: A hyperparameter is out of range, or both terms are the same.

    Source:
      Esser, Rombach and Ommer, "Taming Transformers for High-Resolution Image
      Synthesis", CVPR 2021, Eq. 7, with the bound of the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import adaptive_weight
      >>> weighting = adaptive_weight()
      >>> squared_norms = jnp.array([1.0, 4.0]) ** 2
      >>> weights, _ = weighting.update(squared_norms, weighting.init(2))
      >>> [round(float(w), 6) for w in weights]
      [1.0, 0.25]
    """
    name = "adaptive_weight"
    largest = max
    main = _checks.term(main, "main", name)
    auxiliary = _checks.term(auxiliary, "auxiliary", name)
    if main == auxiliary:
        raise ValueError(
            f"{name}: auxiliary must be a different term from main={main}, found "
            f"{auxiliary}."
        )
    _checks.in_range(largest, "max", name, low=0.0, open_low=True, open_high=True)
    _checks.non_negative(eps, "eps", name)
    _checks.one_of(absolute, "absolute", name, (False, True))

    def init(num_terms: int) -> optax.EmptyState:
        _checks.term(main, "main", name, num_terms)
        _checks.term(auxiliary, "auxiliary", name, num_terms)
        return optax.EmptyState()

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        norms = jnp.sqrt(problem.squared_norms)
        at = _checks.term_at(main, "main", name, problem.num_terms)
        own_at = _checks.term_at(auxiliary, "auxiliary", name, problem.num_terms)
        size, own = norms[at], norms[own_at]
        added = eps if absolute else eps * size
        # Nothing divides 0 by 0, and no quotient overflows: where it would, the bound
        # holds.
        within = size < largest * (own + added)
        ratio = size / jnp.where(within, own + added, 1)
        weight = jnp.where(within, ratio, jnp.where(size > 0, largest, 0))
        known = jnp.isfinite(size) & jnp.isfinite(own)
        if problem.present is not None:
            known = known & problem.present[at]
        weight = jnp.where(known, weight, 1).astype(norms.dtype)
        is_auxiliary = jnp.arange(problem.num_terms) == own_at
        return jnp.where(is_auxiliary, weight, jnp.ones_like(norms)), state

    return _weighting.method(name, init, find, reads_norms=True)
