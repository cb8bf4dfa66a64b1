"""Norm balancing: the gradients of all terms get one size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.weightings import _sizes


class ByNormState(NamedTuple):
    """State of :func:`by_norm`.

    Attributes:
      norms: Moving averages of the terms' norms [K]; 0 for a term not seen yet.
    """

    norms: jax.Array


def by_norm(
    decay: Scalar = 0.9,
    *,
    anchor: int | str | None = None,
    norm_init: Scalar | None = None,
    weights: Any = None,
    eps: Scalar = 1e-10,
) -> Weighting:
    r"""Weights that bring every term's gradient to the size of the anchor's.

    With averaged norms and the anchor term :math:`a`,

    .. math::

      n_i \leftarrow \beta n_i + (1-\beta) \lVert g_i \rVert_2, \qquad
      w_i = u_i \, \frac{n_a}{n_i} .

    A term with :math:`n_i \le \epsilon \max_j n_j` is *silent* and has the weight 1.

    Args:
      decay: :math:`\beta`, in [0, 1).
      anchor: The term that keeps its size: its index or, where ``losses`` are passed,
        its name. ``None``: the first term that is not silent, chosen at each step.
        While a fixed anchor has had no gradient, the others' weights are 0.
        ``"mean"``: no term; all get the geometric mean of the present terms' sizes in
        place of :math:`n_a`, so that the order of the terms plays no part.
      norm_init: ``None``: each average starts at the term's first nonzero norm. A
        float: it starts at this value, and the weights depend on the losses' scale.
      weights: Fixed relative weights :math:`u`, not negative: an array [K] or a pytree
        like the losses. ``None``: all 1.
      eps: :math:`\epsilon`, in [0, 1).

    Returns:
      A :class:`multiterm_optax.Weighting` that reads the gradients' norms; weights [K].
      A norm that is not finite leaves its average as it was, and so does an absent
      term, which may still be the anchor.

    Raises:
      ValueError: A hyperparameter is out of range, or ``weights`` lacks K values.

    Source:
      Malkiel and Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss Terms",
      Alg. 1, lines 6 to 8, with the anchor and the start of the authors' code.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import by_norm
      >>> weighting = by_norm()
      >>> squared_norms = jnp.array([5.0, 1000.0]) ** 2
      >>> weights, _ = weighting.update(squared_norms, weighting.init(2))
      >>> [round(float(w), 6) for w in weights]
      [1.0, 0.005]
    """
    name = "by_norm"
    _checks.decay(decay, "decay", name)
    _checks.in_range(eps, "eps", name, low=0.0, high=1.0, open_high=True)
    # For an array, the comparison with "mean" has no single answer.
    fixed = anchor is not None and not (isinstance(anchor, str) and anchor == "mean")
    if fixed:
        anchor = _checks.term(anchor, "anchor", name)
    if norm_init is not None:
        _checks.non_negative(norm_init, "norm_init", name)

    def init(num_terms: int) -> ByNormState:
        if fixed:
            _checks.term(anchor, "anchor", name, num_terms)
        if weights is not None:
            _checks.vector(weights, "weights", name, num_terms)
        start = 0.0 if norm_init is None else norm_init
        return ByNormState(jnp.full((num_terms,), start, jnp.result_type(float)))

    def find(problem: Problem, state: ByNormState) -> tuple[Weights, ByNormState]:
        old = state.norms
        current = jnp.sqrt(problem.squared_norms)
        moved = decay * old + (1 - decay) * current
        if norm_init is None:
            moved = jnp.where(old == 0, current, moved)
        # A gradient that is not finite must not spoil the average for good.
        moved = jnp.where(jnp.isfinite(current), moved, old).astype(old.dtype)
        norms = problem.keep_absent(moved, old)

        active = norms > eps * jnp.max(norms)
        if anchor == "mean":
            ratios = _sizes.inverse(problem, jnp.where(active, norms, 0))
        else:
            chosen = jnp.argmax(active)
            if fixed:
                chosen = _checks.term_at(anchor, "anchor", name, problem.num_terms)
            ratios = norms[chosen] / jnp.where(active, norms, 1)
        if weights is not None:
            ratios = ratios * _checks.vector(weights, "weights", name, norms.size)
        return jnp.where(active, ratios, 1), ByNormState(norms)

    return _weighting.method(name, init, find, reads_norms=True, by_term=("norms",))
