"""Smooth Tchebycheff: nearly all the weight goes to the largest losses."""

from typing import Any

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _losses


def stch(mu: Scalar = 1.0, preference: Any = None, nadir: Any = None) -> Weighting:
    r"""Smooth Tchebycheff scalarisation: a soft maximum of the losses.

    The weights are the derivatives of

    .. math::

      \mu \log \sum_i e^{\lambda_i \ell_i / \mu}, \qquad
      w_i = \lambda_i p_i \frac{\partial \ell_i}{\partial L_i}, \quad
      p = \operatorname{softmax}(\lambda_i \ell_i / \mu),

    with :math:`\ell_i = L_i`, or :math:`\log (L_i / n_i)` with a ``nadir`` :math:`n`.

    Args:
      mu: :math:`\mu`, positive: how smooth the maximum is.
      preference: :math:`\lambda`, [K], not negative and not normalised. ``None``:
        1/K each, where K is the number of present terms.
      nadir: Losses [K], positive, by which each loss is divided before its logarithm;
        in the authors' multi-task code, the mean losses at the end of a warm-up.
        ``None``: the losses as they are. For an ideal point z, pass :math:`L - z`.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only; weights [K], with
      no state. With ``nadir`` a negative loss counts by its magnitude, and a loss of
      zero has the weight 0. A loss that is NaN makes the weights NaN.

    Raises:
      ValueError: A hyperparameter is out of range, or losses are missing.

    Source:
      Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization",
      ICML 2024; the logarithm is from the authors' multi-task code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import stch
      >>> losses = jnp.array([3.0, 1.0])
      >>> weights, _ = stch(mu=0.5).update(None, stch().init(2), losses=losses)
      >>> [round(float(w), 4) for w in weights]  # 1/2 softmax(3, 1)
      [0.4404, 0.0596]
    """
    name = "stch"
    _checks.in_range(mu, "mu", name, low=0.0, open_low=True)

    preferred = _checks.preference(preference, name)

    def reference_of(num_terms: int) -> Any:
        if nadir is None:
            return None
        reference = _checks.vector(nadir, "nadir", name, num_terms)
        _checks.in_range(reference, "nadir", name, low=0.0, open_low=True, array=True)
        return reference

    def init(num_terms: int) -> optax.EmptyState:
        preferred(num_terms)
        reference_of(num_terms)
        return optax.EmptyState()

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        losses = problem.losses
        lam = preferred(problem.num_terms, problem.equal_shares(losses.dtype))
        reference = reference_of(problem.num_terms)
        if reference is None:
            inner = jnp.ones_like(losses)
            scores = lam * losses
        else:
            sizes = jnp.abs(losses)
            zero = sizes == 0
            sizes = jnp.where(zero, 1, sizes)
            inner = jnp.where(zero, 0, 1 / sizes)
            scores = jnp.where(
                zero, -jnp.inf, lam * (jnp.log(sizes) - jnp.log(reference))
            )
        # Differences are taken first, so that a small mu does not overflow.
        limit = float(jnp.finfo(losses.dtype).max) / 2**20
        scores = jnp.clip(scores, -limit, limit)
        shares = _losses.softmax(problem, (scores - problem.largest(scores)) / mu)
        return (lam * shares * inner).astype(losses.dtype), state

    return _weighting.method(name, init, find, reads_losses=True)
