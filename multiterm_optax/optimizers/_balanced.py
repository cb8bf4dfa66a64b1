"""The recommended optimizer: losses of one size, no conflict, a step for each term."""

import optax

from multiterm_optax import _checks, _stages, _words
from multiterm_optax._typing import Scalar
from multiterm_optax.optimizers._adatask import adatask
from multiterm_optax.transforms import reweight
from multiterm_optax.weightings import by_loss, compose, upgrad

_PARTS = ("adatask", "by_loss", "reweight")


def balanced(
    inner: optax.GradientTransformation, num_terms: int, decay: Scalar = 0.999
) -> optax.GradientTransformationExtraArgs:
    r"""An ordinary optimizer for several terms, with no weights to tune.

    Three stages of the library, one after another:

    1. :func:`multiterm_optax.by_loss` divides the gradient of each term by a slow
       average of its loss, so that units and constant factors of the losses play no
       part.
    2. :func:`multiterm_optax.upgrad` projects each gradient to the nearest direction
       in which no loss grows.
    3. :func:`multiterm_optax.adatask` takes a step of ``inner`` for each term, with its
       own statistics, and adds the steps up.

    .. math::

      u = \sum_i \mathrm{inner}_i\bigl(\pi(w_i g_i)\bigr), \qquad
      w_i \propto 1 / m_i , \quad m_i \text{ the average of } \lvert L_i \rvert .

    Each loss must be a term to bring down for its own sake. Penalties, entropies and KL
    terms belong into the term that they regularise, with their weights.

    Args:
      inner: An optimizer with its learning rate, such as ``optax.adam(1e-3)``. Weight
        decay inside would be applied K times: put it after this transformation.
      num_terms: K, the number of terms.
      decay: The decay rate of the averaged losses, as in
        :func:`multiterm_optax.by_loss`; 0.999 suits runs of a few thousand steps.

    Returns:
      An optimizer: per-term gradients, every leaf [K, \*p], to updates [\*p]. The
      extra argument ``losses`` is required. ``present``, K booleans, says which terms
      this step has: an absent one takes no step, and its part of the state stays. All
      other extra arguments go to ``inner``. With K = 1 it is ``inner``. State: K times
      that of ``inner``.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: A hyperparameter is out of range, ``losses`` is missing, or an update
        lacks the leading term axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import balanced, metrics
      >>> tx = balanced(optax.sgd(0.1), num_terms=2)
      >>> grads = jnp.array([[1.0, 0.0], [-100.0, 100.0]])
      >>> losses = jnp.array([1.0, 100.0])
      >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)), losses=losses)
      >>> [round(float(u), 4) for u in updates]  # 10 (g1 + g2 / 100), projected
      [-0.5, -1.5]
      >>> float(optax.tree.get(state, "conflicts"))
      1.0
    """
    name = "balanced"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    with _words.speaking_as(name, *_PARTS):
        weighting = compose(by_loss(decay), upgrad(rows=True))
        stages = reweight(weighting, num_terms), adatask(inner, num_terms)
    return _stages.speaking_as(name, optax.chain(*stages), *_PARTS)
