"""MetaBalance: auxiliary terms' gradients brought near the main term's size."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _reweighting, _stages, _weighting, _words
from multiterm_optax._groups import Groups
from multiterm_optax._typing import Scalar, Weights
from multiterm_optax._weighting import Problem, Weighting
from multiterm_optax.aggregators import sum_terms
from multiterm_optax.weightings import by_norm


def metabalance(
    inner: optax.GradientTransformation,
    num_terms: int,
    relax: Scalar = 0.7,
    decay: Scalar = 0.9,
    *,
    anchor: int | str = 0,
    strategy: Literal["both", "reduce", "enlarge"] = "both",
    norm_init: Scalar | None = 0.0,
    groups: Groups = "leaf",
    eps: Scalar = 1e-10,
) -> optax.GradientTransformationExtraArgs:
    r"""An ordinary optimizer on gradients brought near the main term's size.

    In each group, with the main term :math:`a` and norms :math:`n_i` averaged as in
    :func:`multiterm_optax.by_norm`,

    .. math::

      g_i \leftarrow r \, \frac{n_a}{n_i} \, g_i + (1 - r) \, g_i , \qquad
      u = \mathrm{inner}\Bigl(\sum_i g_i\Bigr) .

    A group that the main term does not touch is left as it is.

    Args:
      inner: The optimizer, with its learning rate, such as ``optax.adam(1e-3)``.
      num_terms: K, the number of terms.
      relax: The relax factor :math:`r` in [0, 1]: 0 leaves the gradients as they are,
        and 1 gives them all the main term's size.
      decay: Decay rate of the averaged norms, in [0, 1).
      anchor: The main (target) term: its index or, where ``losses`` are passed to
        ``update``, its name.
      strategy: Which auxiliary terms are scaled: those with larger norms than the main
        term's (``"reduce"``), with smaller ones (``"enlarge"``), or all (``"both"``).
      norm_init: Start of the averaged norms. ``None``: each starts at its first
        nonzero norm, so that a term whose gradient appears late is not scaled up at
        first.
      groups: What counts as a layer; see :func:`multiterm_optax.balance_by_norm`.
      eps: The relative norm under which a term is silent.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. With
      K = 1 it is ``inner``. ``update`` takes the extra argument ``present``, K
      booleans: an absent term keeps its average, by which an absent main term still
      scales the others.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: A hyperparameter is out of range, or an update lacks the leading term
        axis.

    Source:
      He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting
      Gradient Magnitudes of Auxiliary Tasks", WWW 2022, Alg. 1; defaults of the
      authors' code.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import metabalance
      >>> tx = metabalance(optax.sgd(1.0), num_terms=2, relax=0.5)
      >>> grads = jnp.array([[3.0, 4.0], [0.0, 100.0]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(u), 4) for u in updates]
      [-3.0, -56.5]
    """
    name = "metabalance"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.transformation(inner, "inner", name)
    _checks.in_range(relax, "relax", name, low=0.0, high=1.0)
    _checks.one_of(strategy, "strategy", name, ("both", "reduce", "enlarge"))
    anchor = _checks.term(anchor, "anchor", name, num_terms)

    def balanced(main: int) -> Weighting:
        return by_norm(decay, anchor=main, norm_init=norm_init, eps=eps)

    with _words.speaking_as(name, "by_norm"):
        relaxed = _relaxed(balanced, relax, anchor, strategy, eps)
        stage = _reweighting.balance(relaxed, num_terms, groups, name)
    tx = optax.chain(stage, sum_terms(), _keeping_shapes(inner, name))
    return _stages.speaking_as(name, tx, "sum_terms")


def _relaxed(
    balanced: Callable[[int], Weighting],
    relax: Scalar,
    anchor: int | str,
    strategy: str,
    eps: Scalar,
) -> Weighting:
    """Moves the weights of the strategy's terms from 1 to those of ``balanced``."""
    name = "metabalance"

    def find(problem: Problem, state: Any) -> tuple[Weights, Any]:
        index = _checks.term_at(anchor, "anchor", name, problem.num_terms)
        weights, state = balanced(index).update(
            problem.squared_norms, state, present=problem.present
        )
        norms = state.norms
        main = norms[index]
        chosen = main > eps * jnp.max(norms)
        if strategy == "reduce":
            chosen = chosen & (norms > main)
        if strategy == "enlarge":
            chosen = chosen & (norms < main)
        return jnp.where(chosen, relax * weights + (1 - relax), 1), state

    # The state is the same for any anchor, and so are the checks of the arguments.
    init = balanced(0).init
    return _weighting.method(name, init, find, reads_norms=True, by_term=("norms",))


def _keeping_shapes(
    inner: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """``inner``, with a check that its state fits the sum of the terms."""
    inner = optax.with_extra_args_support(inner)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        stepped, state = inner.update(updates, state, params, **extra_args)
        _checks.shapes_kept(stepped, updates, name)
        return stepped, state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
