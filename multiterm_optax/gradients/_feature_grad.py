"""Weights from the gradients at shared features: one pass through the trunk."""

from collections.abc import Callable
from typing import Any

import jax

from multiterm_optax import _checks
from multiterm_optax._weighting import Weighting
from multiterm_optax.gradients import _gramian, _inputs, _weights_first
from multiterm_optax.gradients._weights_first import WeightedGrad


def value_and_feature_grad(
    features_fn: Callable[..., Any],
    head_losses_fn: Callable[..., Any],
    weighting: Weighting,
    has_aux: bool = False,
    *,
    gramian: _gramian.Way | None = None,
    every: int = 1,
) -> WeightedGrad:
    r"""As :func:`value_and_weighted_grad`, with weights from the shared features.

    For a trunk that makes features :math:`z = f(\theta)`, and K losses :math:`L_i(z,
    \eta)` with the heads' parameters :math:`\eta`,

    .. math::

      w = \mathrm{weighting}(J_z J_z^T, L), \qquad
      g_\theta = \left(\frac{\partial f}{\partial \theta}\right)^T J_z^T w, \qquad
      g_\eta = \sum_i \nabla_\eta L_i ,

    where the rows of :math:`J_z` are the gradients with respect to z. There are K
    backward passes through the heads and one through the trunk. Each head receives its
    own term's gradient, unweighted. With ``mgda()`` this is MGDA-UB (Sener and Koltun,
    2018, section 3.3), and with ``by_norm()`` the balance that codecs use at their
    output.

    Args:
      features_fn: ``features_fn(trunk, *args, **kwargs)`` returns z, a real array or a
        pytree of such, of any dtypes.
      head_losses_fn: ``head_losses_fn(z, heads, *args, **kwargs)`` returns K losses, as
        :func:`value_and_term_grads` takes them.
      weighting: The weighting that finds the weights.
      has_aux: Whether ``head_losses_fn`` returns ``(losses, aux)``.
      gramian: As in :func:`value_and_weighted_grad`, except for ``"rows"``.
      every: As in :func:`value_and_weighted_grad`.

    Returns:
      A :class:`multiterm_optax.gradients.WeightedGrad`; its ``update(state, trunk,
      heads, *args, present=None, **kwargs)`` returns ``(losses, (trunk_grads,
      heads_grads), state)``, with ``(losses, aux)`` in place of the losses if
      ``has_aux``.

    Raises:
      TypeError: z, a loss or a parameter is not real floating point.
      ValueError: As for :func:`value_and_weighted_grad`.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mgda, value_and_feature_grad
      >>> feature_grad = value_and_feature_grad(
      ...     lambda trunk, x: trunk * x,
      ...     lambda z, heads, x: [heads[0] * z[0], 2 * heads[1] * z[1]],
      ...     mgda(),
      ... )
      >>> state, x = feature_grad.init(num_terms=2), jnp.array([1.0, 3.0])
      >>> params = jnp.array(2.0), jnp.ones(2)
      >>> losses, (trunk, heads), state = feature_grad.update(state, *params, x)
      >>> [round(float(weight), 6) for weight in state.weights]
      [0.8, 0.2]
      >>> round(float(trunk), 6), heads.tolist()
      (2.0, [2.0, 12.0])
    """
    name = "value_and_feature_grad"
    _checks.function(features_fn, "features_fn", name)
    _checks.function(head_losses_fn, "head_losses_fn", name)
    _checks.one_of(gramian, "gramian", name, _gramian.WAYS)
    at_features = _weights_first.weights_first(
        head_losses_fn,
        weighting,
        argnums=(0, 1),
        has_aux=has_aux,
        gramian=gramian,
        every=every,
        shared=(True, False),
        measured=None,
        name=name,
    )
    own = _weights_first.own_arguments(weighting)

    def update(state: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        if len(args) < 2:
            raise ValueError(
                f"{name}: update takes (state, trunk, heads, *args), found {len(args)} "
                "arguments after the state."
            )
        trunk, heads, *others = args
        _inputs.check_parameters(trunk, "trunk", name)
        _inputs.check_parameters(heads, "heads", name)
        passed_on = {key: kwargs[key] for key in kwargs if key not in own}
        features, pullback = jax.vjp(
            lambda trunk: features_fn(trunk, *others, **passed_on), trunk
        )
        _inputs.check_parameters(features, "the result of features_fn", name)
        losses, (along, head_grads), state = at_features.update(
            state, features, heads, *others, **kwargs
        )
        return losses, (pullback(along)[0], head_grads), state

    return WeightedGrad(at_features.init, update)
