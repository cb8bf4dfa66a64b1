"""A weighting as a stage of a chain."""

import optax

from multiterm_optax import _checks, _groups, _reweighting, _weighting
from multiterm_optax._groups import Groups
from multiterm_optax._weighting import Weighting


def reweight(
    weighting: Weighting, num_terms: int, groups: Groups = "global"
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies each term by a weighting's weight: :math:`g_i \leftarrow w_i g_i`.

    A weighting that returns a mixing matrix gives
    :math:`g_i \leftarrow \sum_j W_{ij} g_j`. The gramian
    :math:`G_{ij} = g_i \cdot g_j` is computed here, in at least float32, but only if
    the weighting reads it.

    Args:
      weighting: The weighting, such as :func:`multiterm_optax.mgda`.
      num_terms: K, the number of terms.
      groups: ``"global"``: one set of weights. ``"leaf"``: one for each leaf.
        Otherwise labels as :func:`optax.partition` takes them, and one set for each
        label. Each group has its own gramian and state.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates of the same
      shapes. ``update`` takes the loss values as the extra argument ``losses``, an
      array [K] or a pytree of K scalars; weightings that read them require it. It also
      takes ``present``, K booleans: an absent term's gradient and loss are not read,
      its weight is 0, and its part of the weighting's state stays.

    Raises:
      TypeError: ``weighting`` is not a :class:`multiterm_optax.Weighting`.
      ValueError: ``losses`` is missing or does not have K values, or an update
        lacks the leading term axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mgda, reweight
      >>> tx = reweight(mgda(), num_terms=2)
      >>> grads = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(w), 6) for w in state.weights]
      [0.8, 0.2]
      >>> [[round(float(x), 6) for x in row] for row in updates]
      [[0.8, 0.0], [0.0, 0.4]]
    """
    name = "reweight"
    num_terms = _checks.num_terms(num_terms, name)
    _weighting.check(weighting, name)
    _groups.check_groups(groups, name)

    return _reweighting.reweight(weighting, num_terms, groups, name)
