# Longer than most: the paper's form of any optimizer, and the three that it names.
"""AdaTask: each term keeps its own adaptive statistics, and the steps are summed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _stages, _terms, _words
from multiterm_optax._typing import Scalar
from multiterm_optax.aggregators import scale_by_max_adam
from multiterm_optax.optimizers import _finish
from multiterm_optax.transforms import per_term


def adatask(
    inner: optax.GradientTransformation, num_terms: int, *, weights: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""AdaTask's form of any Optax optimizer.

    .. math:: \theta \leftarrow \theta - \sum_i w_i \, \mathrm{inner}_i(g_i)

    where each term has its own copy of ``inner``'s state. This is
    ``chain(per_term(inner, K), sum_terms())``. Every term takes a step of the size that
    ``inner`` would give it alone, whatever its loss is multiplied by. Parameters that
    only one term touches are trained by the plain ``inner`` on this term.

    Args:
      inner: An optimizer with its learning rate, such as ``optax.adam(1e-3)``. Weight
        decay inside would be applied K times: put it after this transformation.
      num_terms: K, the number of terms.
      weights: :math:`w_i`, K numbers, not negative, by which the terms' own steps are
        multiplied: an array [K] or a pytree like the losses. ``None``: all 1.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      K = 1 it is ``inner``. ``update`` takes the extra argument ``present``, K
      booleans: an absent term takes no step, and its copy of the state stays. All forms
      of AdaTask take it.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: ``num_terms`` is not positive, ``weights`` are not K numbers, or an
        update lacks the leading term axis.

    Source:
      Yang et al., "AdaTask: A Task-Aware Adaptive Learning Rate Approach to
      Multi-Task Learning", AAAI 2023, Alg. 2.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import adatask
      >>> tx = adatask(optax.adam(0.1), num_terms=2)
      >>> grads = jnp.array([[1.0, 0.0], [0.0, -1000.0]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(u), 4) for u in updates]
      [-0.1, 0.1]
    """
    name = "adatask"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    total = _finish.sum_of_steps(weights, num_terms, name)
    tx = optax.chain(per_term(inner, num_terms), total)
    return _stages.speaking_as(name, tx, *_finish.PARTS)


def adatask_adam(
    learning_rate: optax.ScalarOrSchedule,
    num_terms: int,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    eps_in_sqrt: bool = False,
    weights: Any = None,
    weight_decay: Scalar | None = None,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with separate moments for each term.

    .. math:: \theta \leftarrow \theta - \alpha \sum_i w_i
      \frac{\hat m_i}{\sqrt{\hat v_i} + \epsilon}

    State: 2K copies of the parameters.

    Args:
      learning_rate: A number or an Optax schedule.
      num_terms: K, the number of terms.
      b1: Decay rate of the first moments, in [0, 1); the paper's :math:`\gamma_2`.
      b2: Decay rate of the second moments, in [0, 1); the paper's :math:`\gamma_1`.
      eps: Added to the denominator.
      eps_in_sqrt: Put ``eps`` inside the square root. The paper prints both forms.
      weights: As in :func:`adatask`.
      weight_decay: Decoupled weight decay, multiplied by the learning rate and applied
        once, not K times. ``None``: none, and ``update`` does not need ``params``.
      mask: Which parameters decay, as in :func:`optax.adamw`.
      mu_dtype: Dtype of the first moments; ``None``: the parameter's.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      K = 1 it is :func:`optax.adam`, or :func:`optax.adamw`.

    Raises:
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      Yang et al., "AdaTask", AAAI 2023, Alg. 2 and Eq. 7.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import adatask_adam
      >>> tx = adatask_adam(0.1, num_terms=2)
      >>> updates, _ = tx.update(jnp.array([[1.0], [1e6]]), tx.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.2
    """
    name = "adatask_adam"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(b1, "b1", name)
    _checks.decay(b2, "b2", name)
    _checks.non_negative(eps, "eps", name)
    # One stage in place of per_term(optax.scale_by_adam(...)) and sum_terms(). On CPU
    # it needs no temporary copies of the terms' steps, and it keeps second moments in
    # float32.
    with _words.speaking_as(name, *_finish.PARTS):
        adam = scale_by_max_adam(
            num_terms,
            b1,
            b2,
            0.0 if eps_in_sqrt else eps,
            eps_root=eps if eps_in_sqrt else 0.0,
            reduction="own",
            weights=weights,
            mu_dtype=mu_dtype,
        )
    return _finish.step([adam], learning_rate, weight_decay, mask, name)


def adatask_rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    num_terms: int,
    decay: Scalar = 0.99,
    eps: Scalar = 1e-8,
    *,
    eps_in_sqrt: bool = False,
    weights: Any = None,
    weight_decay: Scalar | None = None,
    mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSProp with a separate second moment for each term.

    .. math::

      G_i &\leftarrow \gamma G_i + (1 - \gamma) g_i^2, \\
      \theta &\leftarrow \theta - \alpha \sum_i w_i \frac{g_i}{\sqrt{G_i} + \epsilon}

    State: K copies of the parameters.

    Args:
      learning_rate: A number or an Optax schedule.
      num_terms: K, the number of terms.
      decay: :math:`\gamma`, in [0, 1).
      eps: Added to the denominator.
      eps_in_sqrt: Put ``eps`` inside the square root. The paper prints both forms.
      weights: As in :func:`adatask`.
      weight_decay: Decoupled weight decay, multiplied by the learning rate and applied
        once, not K times. ``None``: none, and ``update`` does not need ``params``.
      mask: Which parameters decay, as in :func:`optax.adamw`.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      K = 1 it is ``optax.rmsprop(decay=decay, eps=eps, eps_in_sqrt=eps_in_sqrt)``.

    Raises:
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      Yang et al., "AdaTask", AAAI 2023, Alg. 2 and Eq. 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import adatask_rmsprop
      >>> tx = adatask_rmsprop(0.1, num_terms=2)
      >>> updates, _ = tx.update(jnp.array([[1.0], [1e6]]), tx.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)  # each term steps 0.1 / sqrt(1 - 0.99)
      -2.0
    """
    name = "adatask_rmsprop"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(decay, "decay", name)
    _checks.non_negative(eps, "eps", name)
    rms = _scale_by_root(
        optax.ScaleByRmsState,
        lambda nu, squares: decay * nu + (1 - decay) * squares,
        eps,
        eps_in_sqrt,
    )
    total = _finish.sum_of_steps(weights, num_terms, name)
    stages = [per_term(rms, num_terms), total]
    return _finish.step(stages, learning_rate, weight_decay, mask, name)


def adatask_adagrad(
    learning_rate: optax.ScalarOrSchedule,
    num_terms: int,
    eps: Scalar = 1e-8,
    *,
    eps_in_sqrt: bool = False,
    weights: Any = None,
    weight_decay: Scalar | None = None,
    mask: Any | Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdaGrad with a separate accumulator for each term.

    .. math::

      G_i &\leftarrow G_i + g_i^2, \\
      \theta &\leftarrow \theta - \alpha \sum_i w_i \frac{g_i}{\sqrt{G_i} + \epsilon}

    The accumulators start at 0, and those of :func:`optax.adagrad` at 0.1. State: K
    copies of the parameters.

    Args:
      learning_rate: A number or an Optax schedule.
      num_terms: K, the number of terms.
      eps: Added to the denominator.
      eps_in_sqrt: Put ``eps`` inside the square root. The paper prints both forms.
      weights: As in :func:`adatask`.
      weight_decay: Decoupled weight decay, multiplied by the learning rate and applied
        once, not K times. ``None``: none, and ``update`` does not need ``params``.
      mask: Which parameters decay, as in :func:`optax.adamw`.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p].

    Raises:
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      Yang et al., "AdaTask", AAAI 2023, Alg. 2 and Eq. 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import adatask_adagrad
      >>> tx = adatask_adagrad(0.1, num_terms=2)
      >>> updates, _ = tx.update(jnp.array([[1.0], [1e6]]), tx.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.2
    """
    name = "adatask_adagrad"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.non_negative(eps, "eps", name)
    rss = _scale_by_root(optax.ScaleByRssState, jnp.add, eps, eps_in_sqrt)
    total = _finish.sum_of_steps(weights, num_terms, name)
    stages = [per_term(rss, num_terms), total]
    return _finish.step(stages, learning_rate, weight_decay, mask, name)


def _scale_by_root(
    state_of: Callable[[optax.Updates], Any],
    accumulate: Callable[[jax.Array, jax.Array], jax.Array],
    eps: Scalar,
    eps_in_sqrt: bool,
) -> optax.GradientTransformation:
    """Divides updates by the root of their squares, summed by ``accumulate(old, new)``.

    Optax's ``scale_by_rms`` turns a zero gradient into NaN where eps = 0, its
    ``scale_by_rss`` has eps inside the root only, and both accumulate in the dtype of
    the parameters, so that squares and eps underflow in float16, and decays near 1
    stall in bfloat16.
    """

    def init_fn(params: optax.Params) -> Any:
        return state_of(jax.tree.map(_terms.zeros_like, params))

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        del params

        def total(update: jax.Array, old: jax.Array) -> jax.Array:
            squares = jnp.square(update.astype(old.dtype))
            return accumulate(old, squares).astype(old.dtype)

        def step(update: jax.Array, square: jax.Array) -> jax.Array:
            inside, outside = (eps, 0) if eps_in_sqrt else (0, eps)
            root = _terms.root(square + inside) + outside
            return _terms.quotient(update, root).astype(update.dtype)

        totals = jax.tree.map(total, updates, *state)
        return jax.tree.map(step, updates, totals), state_of(totals)

    return optax.GradientTransformation(init_fn, update_fn)
