"""ExcessMTL: more weight for the terms that have the most left to learn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Norms, Scalar, TermLeaf
from multiterm_optax._weighting import Problem


class ExcessMTLState(NamedTuple):
    """State of :func:`excess_mtl`.

    Attributes:
      sums: Sums of each term's squared gradients, leaves [K, *p], in at least float32.
      first: The first excess risk of each term that was not 0, [K]; 0 before.
      logits: Logarithms of the weights, [K], up to a common constant.
      weights: The weights of the last step, [K]; ones before the first.
    """

    sums: optax.Updates
    first: jax.Array
    logits: jax.Array
    weights: jax.Array


def excess_mtl(
    num_terms: int, eta: Scalar = 0.01, *, eps: Scalar = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""ExcessMTL: weights each term by an estimate of how much it can still improve.

    Element by element, where the excess risk :math:`e_i` is a sum over all elements,

    .. math::

      S_i &\leftarrow S_i + g_i^2, \qquad
      e_i = \sum \frac{g_i^2}{\sqrt{S_i + \epsilon}}, \\
      w_i &\leftarrow w_i \exp\Bigl( \eta \, \frac{e_i}{e_{i,0}} \Bigr), \qquad
      g_i \leftarrow w_i g_i .

    The first step sets :math:`e_{i,0}` and has :math:`w_i = 1`; the weights sum to K.

    Args:
      num_terms: K, the number of terms.
      eta: :math:`\eta`, not negative: the step size of the weights.
      eps: :math:`\epsilon`, not negative. With 0 a loss's scale makes no difference.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates of the same
      shapes and dtypes. State: K copies of the parameters. ``update`` takes the extra
      argument ``present``, K booleans: an absent term keeps its sums and its share.

    Raises:
      ValueError: A hyperparameter is out of range, or an update has no term axis.

    Source:
      He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import excess_mtl
      >>> tx = excess_mtl(num_terms=2, eta=1.0)
      >>> state = tx.init(jnp.zeros(1))
      >>> for learned in (1.0, 0.0):  # the second term has nothing left to learn
      ...     grads = jnp.array([[3.0], [1000.0 * learned]])
      ...     updates, state = tx.update(grads, state)
      >>> [round(float(w), 3) for w in state.weights]
      [1.34, 0.66]
    """
    name = "excess_mtl"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.non_negative(eta, "eta", name)
    _checks.non_negative(eps, "eps", name)

    def init_fn(params: optax.Params) -> ExcessMTLState:
        zeros = jnp.zeros((num_terms,), jnp.result_type(float))
        return ExcessMTLState(
            sums=jax.tree.map(lambda p: _terms.zeros_per_term(p, num_terms), params),
            first=zeros,
            logits=jnp.array(zeros),
            weights=jnp.ones_like(zeros),
        )

    def update_fn(
        step: Step, state: ExcessMTLState
    ) -> tuple[optax.Updates, ExcessMTLState]:
        problem = Problem(num_terms, step.present)

        # The gradients of absent terms are zeros here, which change nothing.
        def add(total: TermLeaf, update: TermLeaf) -> TermLeaf:
            return total + jnp.square(update.astype(total.dtype))

        def excess(total: TermLeaf, update: TermLeaf) -> Norms:
            # A squared norm, whose elements are as large as the gradient's own.
            halfway = _terms.root(_terms.root(total + eps))
            scaled = _terms.quotient(update.astype(total.dtype), halfway)
            return _terms.squared_norms(scaled).astype(state.first.dtype)

        sums = jax.tree.map(add, state.sums, step.updates)
        parts = jax.tree.leaves(jax.tree.map(excess, sums, step.updates))
        risks = jax.lax.stop_gradient(sum(parts, start=jnp.zeros_like(state.first)))
        moved = state.logits + eta * _terms.quotient(risks, state.first)
        # Infinite logits would have no difference.
        limit = jnp.finfo(moved.dtype).max / 4
        logits = jnp.minimum(moved, limit).astype(state.logits.dtype)

        powers = problem.only_present(jnp.exp(logits - problem.largest(logits)))
        total = jnp.sum(powers)
        weights = problem.num_present * powers / jnp.where(total > 0, total, 1)
        updates = jax.tree.map(lambda g: _terms.scale(weights, g), step.updates)
        first = jnp.where(state.first > 0, state.first, risks)
        weights = weights.astype(state.weights.dtype)
        return updates, ExcessMTLState(sums, first, logits, weights)

    return _stages.stage(name, num_terms, init_fn, update_fn)
