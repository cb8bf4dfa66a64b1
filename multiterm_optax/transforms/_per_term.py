"""Applies any Optax transformation to each term by itself."""

import optax

from multiterm_optax import _checks, _lifting


def per_term(
    inner: optax.GradientTransformation, num_terms: int
) -> optax.GradientTransformationExtraArgs:
    r"""Lifts an Optax transformation over the term axis.

    Each term has its own copy of ``inner``'s state and goes through it by itself,
    :math:`u_i, s_i = \mathrm{inner}(g_i, s_i)`, which papers call task-wise
    statistics. ``init`` and ``update`` are vmapped, so that every array of the state
    gains a leading axis K and keeps its meaning for :func:`optax.tree.get`,
    :func:`optax.tree.map_params` and shardings.

    Weight decay inside ``inner`` would be applied K times, so it belongs after the
    aggregator. Clipping inside ``inner`` clips each term by itself; outside, before the
    aggregator, it would clip all terms jointly.

    Args:
      inner: The transformation. Extra arguments of ``update`` are forwarded to it,
        the same ones for each term, except ``present``.
      num_terms: K, the number of terms.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates of the same
      shapes. ``update`` takes the extra argument ``present``, K booleans: an absent
      term gets zero updates, and its copy of ``inner``'s state stays as it was.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: ``num_terms`` is not positive, or an update lacks the leading term
        axis.

    Source:
      The lifting that AdaTask (Yang et al., 2023, Alg. 2) applies to AdaGrad, RMSProp
      and Adam.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import per_term
      >>> tx = per_term(optax.clip_by_global_norm(1.0), num_terms=2)
      >>> grads = jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [[round(float(x), 6) for x in row] for row in updates]
      [[0.6, 0.8], [0.3, 0.4]]
    """
    name = "per_term"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    return _lifting.lift(inner, num_terms, name)
