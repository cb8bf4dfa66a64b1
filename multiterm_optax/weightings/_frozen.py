"""A weighting whose weights are frozen after a number of steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _weighting
from multiterm_optax._typing import Mixing, Weights
from multiterm_optax._weighting import Problem, Weighting


class FrozenState(NamedTuple):
    """State of :func:`frozen`.

    Attributes:
      weighting: State of the weighting.
      held: The weights of its last step, [K] or [K, K].
      steps: Number of steps so far, int32.
    """

    weighting: Any
    held: jax.Array
    steps: jax.Array


def frozen(weighting: Weighting, steps: int) -> Weighting:
    """A weighting for the first steps of a run, and its last weights from then on.

    A control for comparisons: where the frozen weights do as well as the weighting
    itself, it is the scale of the terms that matters, and not that the weights adapt.

    Args:
      weighting: The weighting that finds the weights, such as
        :func:`multiterm_optax.by_norm`.
      steps: After how many steps the weights are frozen, at least 1.

    Returns:
      A :class:`multiterm_optax.Weighting` that reads what ``weighting`` reads, even
      after the weights are frozen. A term that is absent in the last of these steps
      keeps the weights of the last step in which it was present.

    Raises:
      TypeError: ``weighting`` is not a weighting, or ``steps`` is not a static int.
      ValueError: ``steps`` is below 1, or ``weighting`` may skip steps: frozen in a
        skipped step, it would skip all later ones.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import by_loss, frozen
      >>> weighting = frozen(by_loss(decay=0.0), steps=1)
      >>> state = weighting.init(2)
      >>> for losses in ([1.0, 4.0], [9.0, 1.0]):
      ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
      ...     print([round(float(w), 4) for w in weights])
      [2.0, 0.5]
      [2.0, 0.5]
    """
    name = "frozen"
    _weighting.check(weighting, name)
    steps = _checks.static_int(steps, "steps", name, low=1)

    def init(num_terms: int) -> FrozenState:
        state = weighting.init(num_terms)
        if _weighting.ready(state) is not None:
            raise ValueError(
                f"{name}: weighting must take every step, found one whose state has a "
                "field ready, by which it skips steps."
            )
        return FrozenState(
            weighting=state,
            held=_weighting.neutral_weights(weighting, state, num_terms),
            steps=jnp.zeros([], jnp.int32),
        )

    def find(
        problem: Problem, state: FrozenState
    ) -> tuple[Weights | Mixing, FrozenState]:
        def search() -> tuple[Weights | Mixing, Any]:
            weights, inner = _weighting.inside(weighting, problem, state.weighting)
            weights = weights.astype(state.held.dtype)
            if problem.present is not None:
                own = _weighting.mask_weights(problem.present, jnp.ones_like(weights))
                weights = jnp.where(own > 0, weights, state.held)
            return weights, inner

        held, inner = jax.lax.cond(
            state.steps < steps, search, lambda: (state.held, state.weighting)
        )
        counted = jnp.asarray(optax.safe_increment(state.steps))
        return held, FrozenState(inner, held, counted)

    return _weighting.method(
        name,
        init,
        find,
        **_weighting.reads_of(weighting),
        by_term=("held",),
    )
