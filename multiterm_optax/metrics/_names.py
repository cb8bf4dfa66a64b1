"""Numbers by the names of the terms."""

from typing import Any

import jax
import jax.numpy as jnp

from multiterm_optax import _named


def named(values: Any, losses: Any) -> dict[str, jax.Array]:
    """Returns numbers [K], such as weights or norms, by the names of the losses.

    Args:
      values: An array [..., K], with the terms in the last axis: numbers [K], or a
        history of them [T, K].
      losses: The losses, structured as ``losses_fn`` returns them; only their structure
        is read.

    Returns:
      A dict from the names, in the order of the terms, to arrays [...]. Nested names
      are joined by "/". The terms of a list or an array are called "0", "1" and so on.

    Raises:
      ValueError: The last axis of ``values`` does not have one entry for each loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import metrics
      >>> losses = {"pde": {"res": 0.5, "ics": 2.0}, "data": 0.1}
      >>> weights = metrics.named(jnp.array([4.0, 1.0, 2.0]), losses)
      >>> {name: float(weight) for name, weight in weights.items()}
      {'data': 4.0, 'pde/ics': 1.0, 'pde/res': 2.0}
    """
    array = jnp.asarray(values)
    terms = _named.of(losses)
    number = 0 if terms is None else terms.number
    if array.shape[-1:] != (number,) or terms is None:
        raise ValueError(
            f"metrics.named: values must have shape [..., {number}], one for each "
            f"of the losses{_named.listed(losses)}, found {array.shape}."
        )
    names = terms.names or tuple(map(str, range(number)))
    return {name: array[..., i] for i, name in enumerate(names)}
