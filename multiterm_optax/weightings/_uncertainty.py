"""Uncertainty weighting: each term's variance, learned from its loss."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _named, _weighting
from multiterm_optax._typing import Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _learned

Likelihood = Literal["regression", "classification"]

# The weight of the loss at variance 1.
_FACTORS = {"regression": 0.5, "classification": 1.0}


class UncertaintyState(NamedTuple):
    r"""State of :func:`uncertainty`.

    Attributes:
      log_variance: :math:`s = \log \sigma^2` [K] for the next step.
      optimizer: State of the transformation that learns it.
    """

    log_variance: jax.Array
    optimizer: optax.OptState


def uncertainty(
    optimizer: optax.GradientTransformation | None = None,
    *,
    likelihood: Likelihood | Sequence[Likelihood] | Mapping[str, Any] = "regression",
) -> Weighting:
    r"""Weights each term by its homoscedastic uncertainty :math:`\sigma_i`, learned.

    Minimises, over :math:`s_i = \log \sigma_i^2` as well as over the parameters,

    .. math::

      \sum_i a_i e^{-s_i} L_i + \tfrac12 s_i, \qquad w_i = a_i e^{-s_i},

    with :math:`a_i = 1/2` for the likelihood of a Gaussian (``"regression"``,
    :math:`L_i` a squared error) and :math:`a_i = 1` for that of a scaled softmax
    (``"classification"``, :math:`L_i` a cross entropy). The optimum is at
    :math:`w_i L_i = 1/2`. The :math:`s_i` start at 0; each step uses those that the
    previous step has learned.

    Args:
      optimizer: The Optax transformation that learns :math:`s`, with its learning rate.
        ``None``: ``optax.adam(1e-3)``.
      likelihood: ``"regression"`` or ``"classification"`` for all terms, or K of them:
        a sequence, or a pytree like the losses.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the losses only. The weights [K]
      are not normalised: they grow as the losses fall. A loss of zero or less has no
      optimum and leaves its weight as it is. A loss that is not finite makes it NaN for
      good, so skip such steps.

    Raises:
      TypeError: ``optimizer`` is not a transformation.
      ValueError: ``likelihood`` is not one of the choices or K of them, or losses are
        missing.

    Source:
      Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses
      for Scene Geometry and Semantics", CVPR 2018, Eq. 7 and 10; log variances in 3.2.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import uncertainty
      >>> weighting = uncertainty(optax.adam(0.1))
      >>> state = weighting.init(2)
      >>> for _ in range(300):
      ...     weights, state = weighting.update(
      ...         None, state, losses=jnp.array([0.5, 4.0])
      ...     )
      >>> [round(float(w), 3) for w in weights]  # 1 / (2 L)
      [1.0, 0.125]
    """
    name = "uncertainty"
    learner = optax.adam(1e-3) if optimizer is None else optimizer
    _checks.transformation(learner, "optimizer", name)
    given = _named.by_name(likelihood, "likelihood", name)
    one_for_all = isinstance(given, str) or not isinstance(given, Sequence)
    kinds: list[Any] = [given] if one_for_all else list(given)
    for kind in kinds:
        _checks.one_of(kind, "likelihood", name, tuple(_FACTORS))

    def factors(num_terms: int, dtype: Any) -> jax.Array:
        _named.by_name(likelihood, "likelihood", name)
        if not one_for_all and len(kinds) != num_terms:
            raise ValueError(
                f"{name}: likelihood must be one of the choices or num_terms="
                f"{num_terms} of them{_named.in_order(num_terms)}, found {len(kinds)}"
                f"{_named.listed(likelihood)}."
            )
        values = jnp.asarray([_FACTORS[kind] for kind in kinds], dtype)
        return jnp.broadcast_to(values, (num_terms,))

    def init(num_terms: int) -> UncertaintyState:
        dtype = jnp.result_type(float)
        factors(num_terms, dtype)
        return UncertaintyState(
            log_variance=jnp.zeros((num_terms,), dtype),
            optimizer=learner.init(jnp.zeros((num_terms,), dtype)),
        )

    def find(
        problem: Problem, state: UncertaintyState
    ) -> tuple[Weights, UncertaintyState]:
        now = state.log_variance
        weights = factors(now.size, now.dtype) * jnp.exp(-now)
        # The gradient of an absent term is zero, as its loss is.
        gradient = 0.5 - weights * problem.losses
        gradient = jnp.where(problem.losses <= 0, 0, gradient)
        later, learned = _learned.step(problem, learner, gradient, state.optimizer, now)
        return weights, UncertaintyState(later, learned)

    return _weighting.method(
        name, init, find, reads_losses=True, by_term=("log_variance",)
    )
