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
        is read. K names in the order of the terms will also do.

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
    if _are_names(losses):
        number, names, listed = len(losses), tuple(losses), ""
    else:
        terms = _named.of(losses)
        number = 0 if terms is None else terms.number
        names = (terms and terms.names) or tuple(map(str, range(number)))
        listed = _named.listed(losses)
    if array.shape[-1:] != (number,):
        raise ValueError(
            f"metrics.named: values must have shape [..., {number}], one for each "
            f"of the losses{listed}, found {array.shape}."
        )
    return {name: array[..., i] for i, name in enumerate(names)}


def _are_names(losses: Any) -> bool:
    several = isinstance(losses, list | tuple) and len(losses) > 0
    return several and all(isinstance(one, str) for one in losses)
