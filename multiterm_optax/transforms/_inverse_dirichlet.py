"""Inverse-Dirichlet weights: all gradients get one standard deviation."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _averages, _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Scalar
from multiterm_optax.transforms import _statistics


class InverseDirichletState(NamedTuple):
    """State of :func:`inverse_dirichlet`.

    Attributes:
      averages: Moving averages of the weights [K], which are those of the last step,
        except that an absent term keeps its own. 1 before the first step.
    """

    averages: jax.Array


def inverse_dirichlet(
    num_terms: int, decay: Scalar = 0.5
) -> optax.GradientTransformationExtraArgs:
    r"""Weights the terms so that their gradients spread alike over the parameters.

    With the standard deviation over all elements of a gradient,

    .. math::

      \hat\lambda_i = \frac{\max_j \operatorname{std}(g_j)}{\operatorname{std}(g_i)},
      \qquad \lambda_i \leftarrow \beta \lambda_i + (1 - \beta) \hat\lambda_i, \qquad
      g_i \leftarrow \lambda_i g_i ,

    starting from :math:`\lambda_i = 1`: the smaller gradients are raised to the
    largest.

    Args:
      num_terms: K, the number of terms.
      decay: :math:`\beta`, in [0, 1).

    Returns:
      A transformation of updates, every leaf [K, \*p], that keeps their shapes and
      dtypes. ``update`` takes ``present``, K booleans. The weight of a term whose
      gradient has no spread stays, and so do all weights if a gradient is not finite.

    Raises:
      ValueError: A hyperparameter is out of range, or there is no term axis.

    Source:
      Maddu, Sturm, Müller and Sbalzarini, "Inverse Dirichlet Weighting Enables Reliable
      Training of Physics Informed Neural Networks", Machine Learning: Science and
      Technology, 2022.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import inverse_dirichlet
      >>> tx = inverse_dirichlet(num_terms=2)
      >>> grads = jnp.array([[8.0, -8.0], [5.0, 3.0]])  # deviations 8 and 1
      >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(w), 4) for w in state.averages]  # 0.5 + 0.5 * 8 / 1
      [1.0, 4.5]
    """
    name = "inverse_dirichlet"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(decay, "decay", name)

    def init_fn(params: optax.Params) -> InverseDirichletState:
        del params
        return InverseDirichletState(jnp.ones((num_terms,), jnp.result_type(float)))

    def update_fn(
        step: Step, state: InverseDirichletState
    ) -> tuple[optax.Updates, InverseDirichletState]:
        leaves, old = jax.tree.leaves(step.updates), state.averages
        spreads = _statistics.deviation(leaves, num_terms)
        most = jnp.max(spreads)
        known = (spreads > 0) & jnp.isfinite(most)
        found = _averages.ratio(most, spreads)
        moved = _averages.toward(decay, found, old, known)
        averages = _terms.keep_absent(step.present, moved, old)
        scaled = jax.tree.map(partial(_terms.scale, averages), step.updates)
        return scaled, InverseDirichletState(averages)

    return _stages.stage(name, num_terms, init_fn, update_fn)
