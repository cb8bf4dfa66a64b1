# Longer than most: three reductions and AMSGrad, all with terms that may be absent.
"""The second half of MTAdam: Adam with the largest second moment of the terms."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _stages, _terms
from multiterm_optax._stages import Step
from multiterm_optax._typing import Leaf, Scalar, TermLeaf


class ScaleByMaxAdamState(NamedTuple):
    """State of :func:`scale_by_max_adam`.

    Attributes:
      count: Number of steps taken, int32.
      term_counts: Number of steps in which each term was present, [K], int32.
      mu: First moment of the sum of the terms, leaves [*p]; with
        ``reduction="own"``, first moments of the terms, leaves [K, *p].
      nu: Second moments of the terms, leaves [K, *p], in at least float32.
      nu_max: With ``amsgrad``, the largest reduced second moment so far, else None.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    term_counts: jax.Array
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates | None


def scale_by_max_adam(
    num_terms: int,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    *,
    eps_root: Scalar = 0.0,
    reduction: Literal["max", "mean", "own"] = "max",
    amsgrad: bool = False,
    weights: Any = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam's step for the sum of the terms, scaled by the largest second moment.

    With the bias-corrected Adam moments :math:`\hat m_i, \hat v_i` of each term,

    .. math:: u = \sum_i \frac{\hat m_i}{\sqrt{\max_j \hat v_j} + \epsilon} .

    A single first moment gives exactly this sum, so the state takes K + 1 copies of the
    parameters, not 2K. K equal terms take a step K times as long as that of one term.

    Args:
      num_terms: K, the number of terms.
      b1: Decay rate of the first moment, in [0, 1).
      b2: Decay rate of the second moments, in [0, 1).
      eps: Added outside the square root.
      eps_root: Added inside the square root.
      reduction: ``"max"`` is as above. ``"mean"`` uses the mean of the
        :math:`\hat v_j` of the terms seen so far. ``"own"`` divides each term by its
        own :math:`\hat v_i`; this is AdaTask's Adam and needs 2K copies.
      amsgrad: Keep the largest reduced :math:`\hat v`, as in :func:`optax.amsgrad`.
      weights: With ``"own"``, K numbers, not negative, by which the terms' own steps
        are multiplied: an array [K] or a pytree like the losses; by default all 1.
      mu_dtype: Dtype of the first moment; by default that of the parameter.

    Returns:
      A transformation of updates whose every leaf is [K, \*p] to updates [\*p] of the
      same dtypes. With K = 1 it is :func:`optax.scale_by_adam`. ``update`` takes the
      extra argument ``present``, K booleans: an absent term adds nothing to the first
      moment and keeps its second one, which stays in the maximum (and in the mean).
      With ``"own"`` it keeps both and takes no step.

    Raises:
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      Malkiel and Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss
      Terms", Alg. 1, lines 9 to 15; ``"mean"`` and ``"own"`` are ablations v and iv.

    Example:
      >>> import jax.numpy as jnp
      >>> from multiterm_optax import scale_by_max_adam
      >>> tx = scale_by_max_adam(num_terms=2)
      >>> grads = jnp.array([[1.0, 1.0], [1.0, -4.0]])
      >>> updates, state = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(u), 4) for u in updates]
      [2.0, -0.75]
      >>> state.mu.shape, state.nu.shape
      ((2,), (2, 2))
    """
    name = "scale_by_max_adam"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.decay(b1, "b1", name)
    _checks.decay(b2, "b2", name)
    _checks.non_negative(eps, "eps", name)
    _checks.non_negative(eps_root, "eps_root", name)
    _checks.floating_dtype(mu_dtype, "mu_dtype", name)
    _checks.one_of(reduction, "reduction", name, ("max", "mean", "own"))
    own = reduction == "own"
    if weights is not None:
        if not own:
            raise ValueError(
                f"{name}: weights must be None unless reduction='own', found "
                f"reduction={reduction!r}: with one divisor for all terms, weigh the "
                "gradients instead, by reweight(constant(weights)) before this stage."
            )
        _checks.vector(weights, "weights", name, num_terms)

    def init_fn(params: optax.Params) -> ScaleByMaxAdamState:
        def zeros(param: Any, per_term: bool, dtype: Any = None) -> jax.Array:
            if per_term:
                return _terms.zeros_per_term(param, num_terms, dtype)
            return _terms.zeros_like(param, dtype)

        return ScaleByMaxAdamState(
            count=jnp.zeros([], jnp.int32),
            term_counts=jnp.zeros([num_terms], jnp.int32),
            mu=jax.tree.map(
                lambda p: zeros(p, own, mu_dtype or jnp.result_type(p)), params
            ),
            nu=jax.tree.map(lambda p: zeros(p, True), params),
            nu_max=jax.tree.map(lambda p: zeros(p, own), params) if amsgrad else None,
        )

    def update_fn(
        step: Step, state: ScaleByMaxAdamState
    ) -> tuple[optax.Updates, ScaleByMaxAdamState]:
        updates = step.updates
        keep_absent = partial(_terms.keep_absent, step.present)
        step_count = jnp.asarray(optax.safe_increment(state.count))
        term_counts = keep_absent(
            jnp.asarray(optax.safe_increment(state.term_counts)), state.term_counts
        )
        # The moments of a term that has not been seen yet are zero, whatever their
        # divisor.
        own_counts = jnp.maximum(term_counts, 1)
        correct_mu = 1 / _terms.bias_correction(b1, own_counts if own else step_count)
        correct_nu = 1 / _terms.bias_correction(b2, own_counts)
        if weights is not None:
            # After the moments, so that no divisor takes the weights out again.
            correct_mu *= _checks.vector(weights, "weights", name, num_terms)

        def first_moment(update: TermLeaf, mu: jax.Array) -> jax.Array:
            wide = update.astype(_terms.accumulator_dtype(update))
            if own:
                return keep_absent(b1 * mu + (1 - b1) * wide, mu)
            return b1 * mu + (1 - b1) * _terms.sum_terms(wide)

        def second_moment(update: TermLeaf, nu: TermLeaf) -> TermLeaf:
            wide = update.astype(nu.dtype)
            moved = b2 * nu + (1 - b2) * (wide * wide)
            return keep_absent(moved.astype(nu.dtype), nu)

        def reduce_terms(nu: TermLeaf) -> TermLeaf | Leaf:
            corrected = _terms.scale(correct_nu, nu)
            if reduction == "max":
                return _terms.max_terms(corrected)
            if reduction == "mean":
                seen = jnp.maximum(jnp.sum(term_counts > 0), 1)
                return _terms.sum_terms(corrected) / seen
            return corrected

        def ratio(mu: jax.Array, reduced: jax.Array) -> jax.Array:
            return _terms.quotient(mu, _terms.root(reduced + eps_root) + eps)

        def total(update: TermLeaf, mu: jax.Array, reduced: jax.Array) -> Leaf:
            if own:
                mu = _terms.only_present(step.present, _terms.scale(correct_mu, mu))
                return _terms.sum_of_terms(ratio, mu, reduced).astype(update.dtype)
            return ratio(mu * correct_mu, reduced).astype(update.dtype)

        mu = jax.tree.map(first_moment, updates, state.mu)
        nu = jax.tree.map(second_moment, updates, state.nu)
        reduced = jax.tree.map(reduce_terms, nu)
        nu_max = None
        if state.nu_max is not None:  # amsgrad
            reduced = jax.tree.map(jnp.maximum, state.nu_max, reduced)
            nu_max = optax.tree.cast_like(reduced, state.nu_max)
            if own:
                nu_max = jax.tree.map(keep_absent, nu_max, state.nu_max)
        stepped = jax.tree.map(total, updates, mu, reduced)
        mu = optax.tree.cast_like(mu, state.mu)
        return stepped, ScaleByMaxAdamState(step_count, term_counts, mu, nu, nu_max)

    return _stages.stage(name, num_terms, init_fn, update_fn)
