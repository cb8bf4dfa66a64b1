"""MetaBalance: auxiliary terms' gradients brought near the main term's size."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from multiterm_optax import _checks, _groups, _terms
from multiterm_optax._groups import Groups
from multiterm_optax._typing import Norms, Scalar, TermLeaf
from multiterm_optax.aggregators import sum_terms
from multiterm_optax.transforms import BalanceByNormState, balance_by_norm


def metabalance(
    inner: optax.GradientTransformation,
    num_terms: int,
    relax: Scalar = 0.7,
    decay: Scalar = 0.9,
    *,
    anchor: int = 0,
    strategy: Literal["both", "reduce", "enlarge"] = "both",
    norm_init: Scalar | None = 0.0,
    groups: Groups = "leaf",
    eps: Scalar = 1e-10,
) -> optax.GradientTransformationExtraArgs:
    r"""An ordinary optimizer on gradients brought near the main term's size.

    In each group, with the main term :math:`a` and averaged norms,

    .. math::

      n_i &\leftarrow \beta n_i + (1 - \beta) \lVert g_i \rVert_2, \\
      g_i &\leftarrow r \, \frac{n_a}{n_i} \, g_i + (1 - r) \, g_i , \qquad
      u = \mathrm{inner}\Bigl(\sum_i g_i\Bigr) .

    :func:`multiterm_optax.balance_by_norm` with a fixed anchor, relaxed. A group
    that the main term does not touch is left as it is: the authors train
    task-specific layers by the plain sum of the losses.

    Args:
      inner: The optimizer, with its learning rate, such as ``optax.adam(1e-3)``.
      num_terms: K, the number of terms.
      relax: The relax factor :math:`r` in [0, 1]: 0 leaves the gradients as they are,
        1 gives all the main term's size.
      decay: :math:`\beta`, in [0, 1).
      anchor: Index of the main (target) term.
      strategy: Which auxiliary terms are scaled: those with larger norms than the main
        term's (``"reduce"``, the paper's strategy A), with smaller ones
        (``"enlarge"``, B), or all (``"both"``, C).
      norm_init: Start of the averaged norms, 0 in the paper and the authors' code.
        ``None``: each starts at its first nonzero norm, so that a term that wakes
        late is not scaled up while its average catches up.
      groups: What counts as a layer; see :func:`multiterm_optax.balance_by_norm`.
      eps: The relative norm under which a term is silent; see there.

    Returns:
      An optimizer: per-term gradients, every leaf [K, \*p], to updates [\*p]. State: K
      numbers a group, and ``inner``'s. With K = 1 it is ``inner``. ``update`` takes the
      extra argument ``present``, K booleans: an absent term keeps its average, and
      while the main term is absent the others are scaled by its average.

    Raises:
      TypeError: ``inner`` is not a transformation.
      ValueError: A hyperparameter is out of range, or an update has not the term axis
        first.

    Source:
      He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting
      Gradient Magnitudes of Auxiliary Tasks", WWW 2022, Alg. 1; defaults of the
      authors' code, which has strategy C alone.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import metabalance
      >>> tx = metabalance(optax.sgd(1.0), num_terms=2, relax=0.5)
      >>> grads = jnp.array([[3.0, 4.0], [0.0, 100.0]])
      >>> updates, _ = tx.update(grads, tx.init(jnp.zeros(2)))
      >>> [round(float(u), 4) for u in updates]
      [-3.0, -56.5]
    """
    _checks.transformation(inner, "inner", "metabalance")
    relaxed = _relaxed_balance(
        num_terms, relax, decay, anchor, strategy, norm_init, groups, eps
    )
    return optax.chain(relaxed, sum_terms(), _keeping_shapes(inner))


def _keeping_shapes(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """``inner``, whose state must be for what the sum of the terms leaves."""
    inner = optax.with_extra_args_support(inner)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        stepped, state = inner.update(updates, state, params, **extra_args)
        _checks.shapes_kept(stepped, updates, "metabalance")
        return stepped, state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _relaxed_balance(
    num_terms: int,
    relax: Scalar,
    decay: Scalar,
    anchor: int,
    strategy: str,
    norm_init: Scalar | None,
    groups: Groups,
    eps: Scalar,
) -> optax.GradientTransformationExtraArgs:
    name = "metabalance"
    num_terms = _checks.num_terms(num_terms, name)
    _checks.in_range(relax, "relax", name, low=0.0, high=1.0)
    _checks.decay(decay, "decay", name)
    _checks.one_of(strategy, "strategy", name, ("both", "reduce", "enlarge"))
    _groups.check_groups(groups, name)
    anchor = _checks.term_index(anchor, "anchor", name, num_terms)
    balance = balance_by_norm(
        num_terms, decay, anchor=anchor, norm_init=norm_init, groups=groups, eps=eps
    )

    def chosen(norms: Norms) -> jax.Array:
        main = norms[anchor]
        heard = main > eps * jnp.max(norms)
        if strategy == "reduce":
            return heard & (norms > main)
        if strategy == "enlarge":
            return heard & (norms < main)
        return jnp.broadcast_to(heard, norms.shape)

    def blend(plain: TermLeaf, balanced: TermLeaf, pick: jax.Array) -> TermLeaf:
        share = jnp.where(pick, relax, 0).astype(_terms.accumulator_dtype(plain))
        share = share.reshape(-1, *(1,) * (plain.ndim - 1))
        return (plain + share * (balanced - plain)).astype(plain.dtype)

    def update_fn(
        updates: optax.Updates,
        state: BalanceByNormState,
        params: optax.Params | None = None,
        *,
        present: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, BalanceByNormState]:
        del extra_args
        _checks.term_axis(updates, params, name, num_terms)
        present = _checks.present(present, name, num_terms)
        new_state: Any
        balanced, new_state = balance.update(updates, state, params, present=present)

        def one_group(
            leaves: list[jax.Array], norms: Norms, scaled: list[jax.Array]
        ) -> tuple[list[jax.Array], Norms]:
            pick = chosen(norms)
            blended = [
                _terms.only_present(present, blend(plain, other, pick))
                for plain, other in zip(leaves, scaled, strict=True)
            ]
            return blended, norms

        blended, _ = _groups.update_by_group(
            groups, name, one_group, updates, (new_state.norms,), balanced
        )
        return blended, new_state

    return optax.GradientTransformationExtraArgs(balance.init, update_fn)
