"""The recommended optimizer, which slowly brings all terms' gradients to one size."""

import optax

from multiterm_optax import _checks, _stages, _words
from multiterm_optax._typing import Scalar
from multiterm_optax.weightings import by_norm
from multiterm_optax.wrappers import weighted


def balanced(
    inner: optax.GradientTransformation, num_terms: int, decay: Scalar = 0.999
) -> optax.GradientTransformationExtraArgs:
    r"""An ordinary optimizer for several terms, with no weights to tune.

    .. math::

      u = \mathrm{inner}\Bigl( \sum_i w_i g_i \Bigr), \qquad
      w_i = \frac{1}{n_i} \Bigl( \prod_j n_j \Bigr)^{1/K}

    where :math:`n_i` is a slow average of :math:`\lVert g_i \rVert`: it is
    ``weighted(by_norm(decay, anchor="mean", eps=0), inner, num_terms)``.

    Each loss must be a goal of its own. A penalty, an entropy or a KL term belongs,
    with its weight, in the loss that it regularises.

    Args:
      inner: Any optimizer, with its learning rate, such as ``optax.adam(1e-3)``.
      num_terms: K, the number of terms.
      decay: The decay rate of the averaged norms, in [0, 1).

    Returns:
      As :func:`multiterm_optax.weighted`, an optimizer from per-term gradients, every
      leaf [K, \*p], to updates [\*p]; ``losses`` may be left out. K = 1 is ``inner``.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: ``decay`` is out of range, or an update lacks the leading term axis.

    Source:
      :func:`multiterm_optax.by_norm`; chosen by measurement (docs, "How to choose").

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import balanced
      >>> tx = balanced(optax.sgd(1.0), num_terms=2)
      >>> grads = jnp.array([[1.0, 0.0], [-60.0, 80.0]])
      >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(w), 4) for w in optax.tree.get(state, "weights")]
      [10.0, 0.1]
      >>> [round(float(u), 4) for u in updates]
      [-4.0, -8.0]
    """
    name = "balanced"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    parts = "by_norm", "weighted"
    with _words.speaking_as(name, *parts):
        weighting = by_norm(decay, anchor="mean", eps=0.0)
        tx = weighted(weighting, inner, num_terms)
    return _stages.speaking_as(name, tx, *parts)
