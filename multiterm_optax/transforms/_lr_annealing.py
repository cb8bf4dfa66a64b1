"""Learning-rate annealing: every other term at the scale of the residual's gradient."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _averages, _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Scalar
from multiterm_optax.transforms import _statistics


class LRAnnealingState(NamedTuple):
    """State of :func:`lr_annealing`.

    Attributes:
      averages: Moving averages of the weights [K], which are those of the last step,
        except that an absent term keeps its own. 1 before the first step.
    """

    averages: jax.Array


def lr_annealing(
    num_terms: int,
    decay: Scalar = 0.9,
    statistic: Literal["max", "mean"] = "max",
    *,
    anchor: int | str = 0,
    plain: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Weights the terms so that their gradients match the residual's (LR annealing).

    The anchor :math:`a` keeps the weight 1; the others get, from the old
    :math:`\lambda_i`,

    .. math::

      \hat\lambda_i = \frac{\max \lvert g_a \rvert}
      {\operatorname{mean} \lvert \lambda_i g_i \rvert}, \qquad
      \lambda_i \leftarrow \beta \lambda_i + (1 - \beta) \hat\lambda_i, \qquad
      g_i \leftarrow \lambda_i g_i .

    Args:
      num_terms: K, the number of terms.
      decay: :math:`\beta`, in [0, 1): the old weight's share.
      statistic: ``"mean"``: the mean of :math:`\lvert g_a \rvert`, not its maximum.
      anchor: The residual, by its index or by its name in the losses; 0 is the first
        of the sorted names.
      plain: Whether :math:`\lambda_i` is left out of the mean. With :math:`\lambda_i`
        in it, as printed, constant gradients lead to the *root* of their ratio;
        without, to the ratio.

    Returns:
      A transformation of updates, every leaf [K, \*p], that keeps their shapes and
      dtypes. ``update`` takes ``present``, K booleans. The weight of a term whose
      gradient is zero or not finite stays; so do all weights while that holds for the
      anchor or the anchor is absent.

    Raises:
      ValueError: A hyperparameter is out of range, or there is no term axis.

    Source:
      Wang, Teng and Perdikaris, "Understanding and Mitigating Gradient Flow Pathologies
      in Physics-Informed Neural Networks", SISC 2021, Alg. 1; decay of their code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import lr_annealing
      >>> tx = lr_annealing(num_terms=2)
      >>> grads = jnp.array([[6.0, -10.0], [1.0, -3.0]])
      >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(w), 4) for w in state.averages]  # 0.9 + 0.1 * 10 / 2
      [1.0, 1.4]
    """
    name = "lr_annealing"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(decay, "decay", name)
    _checks.one_of(statistic, "statistic", name, ("max", "mean"))
    anchor = _checks.term(anchor, "anchor", name, num_terms)
    _checks.one_of(plain, "plain", name, (False, True))

    def init_fn(params: optax.Params) -> LRAnnealingState:
        del params
        return LRAnnealingState(jnp.ones((num_terms,), jnp.result_type(float)))

    def update_fn(
        step: Step, state: LRAnnealingState
    ) -> tuple[optax.Updates, LRAnnealingState]:
        leaves, old = jax.tree.leaves(step.updates), state.averages
        means = _statistics.mean(leaves, num_terms)
        sizes = means if statistic == "mean" else _statistics.largest(leaves, num_terms)
        chosen = _checks.term_at(anchor, "anchor", name, num_terms)
        size = sizes[chosen]
        known = (size > 0) & (means > 0) & jnp.isfinite(size) & jnp.isfinite(means)
        found = _averages.ratio(size, means, *(() if plain else (old,)))
        moved = _averages.toward(decay, found, old, known)
        moved = jnp.where(jnp.arange(num_terms) == chosen, 1, moved)
        averages = _terms.keep_absent(step.present, moved, old)
        scaled = jax.tree.map(partial(_terms.scale, averages), step.updates)
        return scaled, LRAnnealingState(averages)

    return _stages.stage(name, num_terms, init_fn, update_fn)
