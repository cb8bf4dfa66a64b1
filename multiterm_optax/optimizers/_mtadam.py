"""MTAdam: balances the terms' gradients by norm, then steps by the largest variance."""

from collections.abc import Callable
from typing import Any

import optax

from multiterm_optax import _checks, _words
from multiterm_optax._groups import Groups
from multiterm_optax._typing import Scalar
from multiterm_optax.aggregators import scale_by_max_adam
from multiterm_optax.optimizers import _finish
from multiterm_optax.transforms import balance_by_norm


def mtadam(
    learning_rate: optax.ScalarOrSchedule,
    num_terms: int,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9,
    eps: Scalar = 1e-8,
    *,
    eps_root: Scalar = 0.0,
    anchor: int | str | None = None,
    norm_init: Scalar | None = None,
    weights: Any = None,
    groups: Groups = "leaf",
    amsgrad: bool = False,
    weight_decay: Scalar | None = None,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""MTAdam: Adam for the sum of K loss terms that keeps their gradients balanced.

    The chain of :func:`balance_by_norm`, :func:`scale_by_max_adam`, decoupled weight
    decay if asked for, and the learning rate:

    .. math::

      g_i \leftarrow w_i \, \frac{n_a}{n_i} \, g_i, \qquad
      \theta \leftarrow \theta - \alpha \sum_i
        \frac{\hat m_i}{\sqrt{\max_j \hat v_j} + \epsilon} .

    K equal terms step K times as far as Adam on one of them, so divide a learning rate
    that was tuned for the mean of the losses by K.

    Args:
      learning_rate: A number or an Optax schedule.
      num_terms: K, the number of terms.
      b1: Decay rate of the first moment, in [0, 1).
      b2: Decay rate of the second moments, in [0, 1).
      b3: Decay rate of the gradient norms, in [0, 1).
      eps: Added to the denominator, outside the square root.
      eps_root: Added inside the square root.
      anchor: Term whose gradient size the others take; see :func:`balance_by_norm`.
      norm_init: Start of the averaged norms; see :func:`balance_by_norm`.
      weights: Fixed relative weights, K numbers; see :func:`balance_by_norm`.
      groups: What counts as a layer; see :func:`balance_by_norm`.
      amsgrad: Keep the largest second moment; see :func:`scale_by_max_adam`.
      weight_decay: Decoupled weight decay, multiplied by the learning rate and applied
        once, not K times. ``None``: none, and ``update`` does not need ``params``.
      mask: Which parameters decay, as in :func:`optax.adamw`.
      mu_dtype: Dtype of the first moment; ``None``: the parameter's.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      K = 1 it is :func:`optax.adam`, or :func:`optax.adamw`. ``update`` takes the extra
      argument ``present``, K booleans; see :func:`balance_by_norm` and
      :func:`scale_by_max_adam`.

    Raises:
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      Malkiel and Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss
      Terms", Alg. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mtadam, value_and_term_grads
      >>> def losses_fn(w):  # the second term shouts 1000 times louder
      ...     return {"a": (w[0] - 1.0) ** 2, "b": 1000 * (w[1] + 1.0) ** 2}
      >>> tx = mtadam(0.1, num_terms=2)
      >>> w = jnp.zeros(2)
      >>> losses, grads = value_and_term_grads(losses_fn)(w)
      >>> updates, state = tx.update(grads, tx.init(w), w)
      >>> [round(float(u), 4) for u in updates]  # and steps no further
      [0.1, -0.1]
    """
    name = "mtadam"
    _checks.num_terms(num_terms, name)
    for decay, argument in ((b1, "b1"), (b2, "b2"), (b3, "b3")):
        _checks.decay(decay, argument, name)
    for epsilon, argument in ((eps, "eps"), (eps_root, "eps_root")):
        _checks.non_negative(epsilon, argument, name)
    with _words.speaking_as(name, *_finish.PARTS):
        stages = [
            balance_by_norm(
                num_terms,
                decay=b3,
                anchor=anchor,
                norm_init=norm_init,
                weights=weights,
                groups=groups,
            ),
            scale_by_max_adam(
                num_terms,
                b1=b1,
                b2=b2,
                eps=eps,
                eps_root=eps_root,
                amsgrad=amsgrad,
                mu_dtype=mu_dtype,
            ),
        ]
    return _finish.step(stages, learning_rate, weight_decay, mask, name)
