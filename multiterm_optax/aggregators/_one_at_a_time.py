"""One term per step: a momentum for each term, and a weighting of all momenta."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _reweighting, _stages, _terms, _weighting
from multiterm_optax._stages import Step
from multiterm_optax._typing import Scalar, TermLeaf
from multiterm_optax._weighting import Weighting


class OneAtATimeState(NamedTuple):
    """State of :func:`one_at_a_time`.

    Attributes:
      term_counts: Number of steps in which each term was present, [K], int32.
      momenta: Moving averages of the terms' gradients, corrected for their start from
        zero, leaves [K, *p], in at least float32.
      losses: The last loss of each term, [K], if the weighting reads losses, else None.
      weighting: The weighting's own state.
    """

    term_counts: jax.Array
    momenta: optax.Updates
    losses: jax.Array | None
    weighting: Any


def one_at_a_time(
    weighting: Weighting, num_terms: int, decay: Scalar = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Weights and sums momenta, so that a step needs the gradient of one term only.

    Each present term moves its :math:`m_i \leftarrow \beta m_i + (1 - \beta) \, g_i`,
    from 0, and counts its steps :math:`t_i`. The step is made of all terms seen so far:

    .. math::

      \hat m_i = m_i / (1 - \beta^{t_i}), \qquad u = \sum_i w_i \hat m_i, \qquad
      w = \mathrm{weighting}(\hat M \hat M^\top).

    Args:
      weighting: A weighting, such as :func:`multiterm_optax.upgrad`.
      num_terms: K, the number of terms.
      decay: :math:`\beta`, in [0, 1).

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates [\*p] of the
      same dtypes. State: K copies of the parameters. ``update`` takes the extra
      argument ``present``, K booleans, which :func:`multiterm_optax.value_and_one_grad`
      returns; here an absent term takes part with its momentum. The last value of each
      term in the extra argument ``losses`` counts.

    Raises:
      TypeError: ``weighting`` is not a :class:`multiterm_optax.Weighting`.
      ValueError: ``decay``, the losses or the updates are not as above.

    Source:
      Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed
      Neural Networks", ICLR 2025 (M-ConFIG), up to the second moment.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import mgda, one_at_a_time
      >>> tx = one_at_a_time(mgda(), num_terms=2)
      >>> grads, state = jnp.array([[1.0, 0.0], [0.0, 2.0]]), tx.init(jnp.zeros(2))
      >>> for present in ([True, False], [False, True]):
      ...     updates, state = tx.update(grads, state, present=present)
      >>> [round(float(u), 6) for u in updates]
      [0.8, 0.4]
    """
    name = "one_at_a_time"
    num_terms = _checks.num_terms(num_terms, name)
    _weighting.check(weighting, name)
    _checks.decay(decay, "decay", name)

    def init_fn(params: optax.Params) -> OneAtATimeState:
        losses = None
        if weighting.reads_losses:
            losses = jnp.zeros((num_terms,), jnp.result_type(float))
        return OneAtATimeState(
            term_counts=jnp.zeros([num_terms], jnp.int32),
            momenta=jax.tree.map(lambda p: _terms.zeros_per_term(p, num_terms), params),
            losses=losses,
            weighting=weighting.init(num_terms),
        )

    def update_fn(
        step: Step, state: OneAtATimeState
    ) -> tuple[optax.Updates, OneAtATimeState]:
        keep_absent = partial(_terms.keep_absent, step.present)
        losses = step.losses_vector(name, num_terms, needed=weighting.reads_losses)
        if losses is not None and state.losses is not None:
            losses = keep_absent(losses.astype(state.losses.dtype), state.losses)
        term_counts = keep_absent(
            jnp.asarray(optax.safe_increment(state.term_counts)), state.term_counts
        )
        # With this rate, 1 in a term's first step, the averages need no correction.
        started = jnp.maximum(term_counts, 1)
        rate = (1 - decay) / _terms.bias_correction(decay, started)

        def move(momentum: TermLeaf, update: TermLeaf) -> TermLeaf:
            away = update.astype(momentum.dtype) - momentum
            return keep_absent(momentum + _terms.scale(rate, away), momentum)

        momenta = jax.tree.map(move, state.momenta, step.updates)
        leaves, structure = jax.tree.flatten(momenta)
        # If all terms are present in every step, none needs to be masked.
        seen = None if step.present is None else term_counts > 0
        weights, found = _reweighting.find_weights(
            weighting,
            leaves,
            state.weighting,
            step._replace(present=seen),
            losses,
            num_terms,
        )
        total = [_terms.weighted_sum(weights, leaf) for leaf in leaves]
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(step.updates)]
        summed = [x.astype(dtype) for x, dtype in zip(total, dtypes, strict=True)]
        kept = losses if state.losses is not None else None
        stepped = structure.unflatten(summed)
        return stepped, OneAtATimeState(term_counts, momenta, kept, found)

    return _stages.stage(name, num_terms, init_fn, update_fn)
