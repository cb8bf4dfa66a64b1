"""Weights from the traces of the neural tangent kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting, _words
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _against_mean


class NTKState(NamedTuple):
    """State of :func:`ntk`.

    Attributes:
      averages: Moving averages of the weights [K], 1 before the first traces.
    """

    averages: jax.Array


def ntk(decay: Scalar = 0.9) -> Weighting:
    r"""Weights in inverse proportion to the traces of the neural tangent kernel.

    With the residuals :math:`r_i` of term :math:`i`, which has :math:`n_i` rows,

    .. math::

      k_i = \frac{1}{n_i} \sum_{b} \Bigl\lVert
      \frac{\partial r_{ib}}{\partial \theta} \Bigr\rVert^2, \qquad
      \hat w_i = \frac{\frac1K \sum_j k_j}{k_i}, \qquad
      w_i \leftarrow \beta w_i + (1 - \beta) \hat w_i, \qquad w_i = 1 \text{ at first.}

    Args:
      decay: :math:`\beta`, in [0, 1).

    Returns:
      A :class:`multiterm_optax.Weighting` that reads neither gradients nor losses but
      the extra argument ``traces``, the :math:`k_i`, an array [K] or a pytree of K
      scalars, such as :func:`multiterm_optax.ntk_traces` returns. In a step without
      them the weights stay as they were, as traces are costly and change slowly. The
      weight of a term whose trace is zero stays, and so do all weights if a trace is
      not finite. No ratio counts for more than 1e30.

    Raises:
      ValueError: ``decay`` is out of range, or ``traces`` are not K numbers.

    Source:
      Wang, Yu and Perdikaris, "When and Why PINNs Fail to Train: A Neural Tangent
      Kernel Perspective", JCP 2022, Alg. 1, with the means and the moving average of
      jaxpi (Wang, Sankaran, Wang and Perdikaris, 2023).

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import ntk
      >>> weighting = ntk()
      >>> traces = jnp.array([1.0, 3.0])
      >>> weights, state = weighting.update(None, weighting.init(2), traces=traces)
      >>> [round(float(w), 4) for w in weights]
      [1.1, 0.9667]
    """
    name = "ntk"
    _checks.decay(decay, "decay", name)

    def init(num_terms: int) -> NTKState:
        return NTKState(jnp.ones((num_terms,), jnp.result_type(float)))

    def find(problem: Problem, state: NTKState) -> tuple[Weights, NTKState]:
        averages = state.averages
        given = problem.extra_args.get("traces")
        if given is not None:
            traces = problem.only_present(_vector(given, problem.num_terms, name))
            traces = jax.lax.stop_gradient(traces)
            averages = _against_mean.step(problem, traces, averages, decay)
        return averages, NTKState(averages)

    return _weighting.method(
        name, init, find, by_term=("averages",), extra_args=("traces",)
    )


def _vector(traces: Any, num_terms: int, name: str) -> jax.Array:
    """The traces as an array [K], in the order of their leaves."""
    leaves = jax.tree.leaves(traces)
    for leaf in leaves:
        _checks.real(leaf, "traces", name)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if shapes not in ([(num_terms,)], [()] * num_terms):
        found = _words.describe(traces) if len(leaves) == 1 else f"shapes {shapes}"
        raise ValueError(
            f"{name}: traces must be an array [K] or a pytree of K scalars, for "
            f"num_terms={num_terms}, found {found}."
        )
    parts = [jnp.asarray(leaf, jnp.result_type(float)) for leaf in leaves]
    return parts[0].reshape(num_terms) if len(parts) == 1 else jnp.stack(parts)
