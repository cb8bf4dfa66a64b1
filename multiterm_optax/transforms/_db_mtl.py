"""DB-MTL: averaged gradients of the losses' logarithms, all as long as the longest.

It is the composition of ``reweight`` by one over the losses, ``per_term`` of the
average, and ``reweight`` to one length.
"""

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _lifting, _reweighting, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.transforms import _tracking


def db_mtl(
    num_terms: int, decay: Scalar = 0.9, power: Scalar = 0.0, *, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
    r"""DB-MTL: dual balancing, of the losses by logarithms and of the gradients' norms.

    With :math:`m_i = 0` before the first step,

    .. math::

      h_i = \frac{g_i}{L_i + \epsilon} \approx \nabla \log L_i, \qquad
      m_i \leftarrow \beta_t m_i + (1 - \beta_t) \, h_i, \quad
      \beta_t = \beta / t^s, \qquad
      g_i \leftarrow \frac{\max_j \lVert m_j \rVert}{\lVert m_i \rVert} \, m_i .

    Args:
      num_terms: K, the number of terms.
      decay: :math:`\beta`, in [0, 1).
      power: :math:`s`, not negative: how fast the decay itself falls.
      eps: :math:`\epsilon`, not negative. Losses below it are not balanced.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates of the same
      shapes and dtypes. State: K copies of the parameters. ``update`` takes the extra
      argument ``losses``, an array [K] or a pytree of K scalars; a negative loss counts
      by its magnitude. It also takes ``present``, K booleans: an absent term keeps its
      average and its count of steps, and gets zero updates.

    Raises:
      ValueError: A hyperparameter, the losses or the updates are not as above.

    Source:
      Lin et al., "Dual-Balancing for Multi-Task Learning", 2023, Alg. 1; defaults of
      the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import db_mtl
      >>> tx = db_mtl(num_terms=2, decay=0.0)
      >>> grads, losses = jnp.array([[3.0, 4.0], [0.0, 1e3]]), jnp.array([1.0, 500.0])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)), losses=losses)
      >>> [[round(float(x), 3) for x in row] for row in updates]
      [[3.0, 4.0], [0.0, 5.0]]
    """
    name = "db_mtl"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(decay, "decay", name)
    _checks.non_negative(power, "power", name)
    _checks.non_negative(eps, "eps", name)

    def rate(count: jax.Array) -> jax.Array:
        steps = count.astype(jnp.result_type(float)) + 1
        return 1 - decay * steps**-power

    return _tracking.in_turn(
        name,
        num_terms,
        _reweighting.reweight(_by_logarithm(eps, name), num_terms, "global", name),
        _lifting.lift(_tracking.track(rate), num_terms, name),
        _reweighting.reweight(_to_longest(name), num_terms, "global", name),
    )


def _by_logarithm(eps: Scalar, name: str) -> Weighting:
    """One over each loss: the derivative of the logarithm with respect to the loss."""

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        sizes = jnp.abs(problem.losses) + eps
        smallest = jnp.finfo(sizes.dtype).tiny
        return jnp.where(sizes > 0, 1 / jnp.maximum(sizes, smallest), 0), state

    return _weighting.method(name, _weighting.stateless, find, reads_losses=True)


def _to_longest(name: str) -> Weighting:
    """Scales all gradients to the length of the longest; zero gradients stay zero."""

    def find(
        problem: Problem, state: optax.EmptyState
    ) -> tuple[Weights, optax.EmptyState]:
        norms = jnp.sqrt(problem.squared_norms)
        known = (norms > 0) & jnp.isfinite(norms)
        longest = jnp.max(jnp.where(known, norms, 0))
        return jnp.where(known, longest / jnp.where(known, norms, 1), 1), state

    return _weighting.method(name, _weighting.stateless, find, reads_norms=True)
