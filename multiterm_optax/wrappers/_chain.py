# Longer than most: its messages say which stage made the mistake.
"""An ``optax.chain`` that checks where the term axis is removed."""

from typing import Any

import jax
import optax
from jax.tree_util import keystr

from multiterm_optax import _checks, _terms, _words
from multiterm_optax.wrappers import _searching

_NAME = "chain"
_PLAIN_SUM = "multiterm_optax.sum_terms"


def chain(
    *stages: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""An ``optax.chain`` that refuses a chain without exactly one aggregator.

    It computes what :func:`optax.chain` computes and has the same state. While
    ``update`` is traced, it checks the shapes: the updates must come with the term
    axis, exactly one stage must remove it from every leaf, and no stage before that one
    may have been initialised for updates without it. :func:`optax.chain` cannot check
    this: if the aggregator is forgotten there, Adam broadcasts its moments, and the
    parameters silently become [K, \*p].

    A mistake that does not show in the shapes is not noticed, such as
    :func:`optax.add_decayed_weights` before the aggregator, which decays K times.

    Args:
      *stages: Transformations, one of which removes the term axis. Stages of one kind
        may be grouped by :func:`optax.chain`; use this function for the whole chain.

    Returns:
      An optimizer from per-term gradients, every leaf [K, \*p], to updates [\*p]. Extra
      arguments go to every stage that takes them. After :func:`sum_terms` as the first
      stage, with ``losses`` passed, ``value`` and ``grad`` default to those of the sum,
      and a ``value_fn`` may return the losses.

    Raises:
      TypeError: A stage is not a transformation.
      ValueError: There is no aggregator or more than one, an ordinary stage with a
        state comes before it, or an update lacks the leading term axis.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from multiterm_optax import balance_by_norm, chain, sum_terms
      >>> params, grads = jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 1000.0]])
      >>> tx = chain(balance_by_norm(2), sum_terms(), optax.sgd(1.0))
      >>> tx.update(grads, tx.init(params), params)[0].tolist()
      [-3.0, -9.0]
      >>> tx = chain(balance_by_norm(2), optax.adam(0.1))
      >>> tx.update(grads, tx.init(params), params)
      Traceback (most recent call last):
        ...
      ValueError: chain: stages[1] (optax.chain) was initialised for updates without...
    """
    for i, stage in enumerate(stages):
        _checks.transformation(stage, f"stages[{i}]", _NAME)
    if not stages:
        raise ValueError(f"{_NAME}: stages must hold at least an aggregator, found ().")
    labels = [f"stages[{i}] ({_origin(stage)})" for i, stage in enumerate(stages)]
    wrapped = [optax.with_extra_args_support(stage) for stage in stages]

    def init_fn(params: optax.Params) -> tuple[optax.OptState, ...]:
        return tuple(stage.init(params) for stage in wrapped)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, tuple[optax.OptState, ...]]:
        _checks.term_axis(updates, params, _NAME)
        if not isinstance(state, tuple) or len(state) != len(stages):
            raise ValueError(
                f"{_NAME}: state must be a tuple of {len(stages)} states, one for each "
                f"stage, as made by init, found {jax.tree.structure(state)}."
            )
        removed_by = None
        found = extra_args
        states = []
        for label, stage, old in zip(labels, wrapped, state, strict=True):
            before = updates
            try:
                with _searching.saying_the_way_round(f"{_NAME}: {label}"):
                    taken = _searching.accepted(stage.update, found, extra_args)
                    updates, new = stage.update(before, old, params, **taken)
            except Exception as error:
                if removed_by is None and not _is_own(label):
                    error.add_note(
                        f"{_NAME}: {label} got updates with the term axis. If it is an "
                        "ordinary Optax transformation, an aggregator belongs before "
                        "it."
                    )
                raise
            if removed_by is None:
                _checks.state_keeps_shapes(old, new, f"{_NAME}: {label}")
                if _removes(before, updates, label):
                    removed_by = label
                    found = _after_the_aggregator(extra_args, before, updates, label)
            else:
                _check_kept(before, updates, label, removed_by)
            states.append(new)
        if removed_by is None and jax.tree.leaves(updates):
            raise ValueError(_forgotten(updates, labels))
        return updates, tuple(states)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _after_the_aggregator(
    extra_args: dict[str, Any], before: Any, total: Any, label: str
) -> dict[str, Any]:
    """The extra arguments with what line searches ask for, where it is known.

    It is known where nothing came before the sum, as ``total`` is then the gradient of
    all losses.
    """
    if label != f"stages[0] ({_PLAIN_SUM})":
        return _searching.with_value_fn(extra_args, None)
    num_terms = jax.tree.leaves(before)[0].shape[0]
    present = _checks.present(extra_args.get("present"), _NAME, num_terms)

    def value(values: Any) -> jax.Array:
        vector: Any = _checks.losses(values, _NAME, num_terms)
        return _terms.sum_terms(_terms.only_present(present, vector))

    return _searching.arguments(extra_args, total, extra_args.get("losses"), value)


def _origin(stage: optax.GradientTransformation) -> str:
    """Package and function that made a stage, as far as they can be found."""
    update = stage.update
    made_by = getattr(update, "__qualname__", type(update).__name__).split(".")[0]
    package = (getattr(update, "__module__", None) or "").split(".")[0]
    return f"{package}.{made_by}" if package else made_by


def _is_own(label: str) -> bool:
    return "(multiterm_optax." in label


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {keystr(path): getattr(leaf, "shape", ()) for path, leaf in leaves}


def _removes(before: Any, after: Any, label: str) -> bool:
    """Whether a stage removed the term axis; it must do so in all leaves or in none."""
    _check_structure(before, after, label)
    removed, kept = [], []
    new_shapes = _shapes(after)
    for path, old in _shapes(before).items():
        new = new_shapes[path]
        if new not in (old, old[1:]):
            raise ValueError(
                f"{_NAME}: {label} turns updates{path} of shape {old} into shape "
                f"{new}, expected {old} (a stage that keeps the term axis) or "
                f"{old[1:]} (an aggregator)."
            )
        (kept if new == old else removed).append(path)
    if removed and kept:
        raise ValueError(
            f"{_NAME}: {label} removes the term axis from updates{removed[0]} but not "
            f"from updates{kept[0]}, which leaves it with shape {new_shapes[kept[0]]}. "
            "All leaves must lose it in the same stage; multiterm_optax.masked sums "
            "the terms of the leaves that it leaves out."
        )
    return bool(removed)


def _check_kept(before: Any, after: Any, label: str, removed_by: str) -> None:
    """Refuses stages after the aggregator that change shapes or need the term axis."""
    _check_structure(before, after, label)
    new_shapes = _shapes(after)
    for path, old in _shapes(before).items():
        # A stage of this package needs the term axis. Without params it cannot notice
        # that the axis is missing if a parameter happens to have K rows.
        if new_shapes[path] != old or _is_own(label):
            raise ValueError(
                f"{_NAME}: {label} gets updates{path} of shape {old} without the term "
                f"axis, which {removed_by} has removed, and returns shape "
                f"{new_shapes[path]}: only one aggregator (K -> 1) may stand in a "
                "chain, and stages that keep the term axis (K -> K) belong before it."
            )


def _check_structure(before: Any, after: Any, label: str) -> None:
    old, new = jax.tree.structure(before), jax.tree.structure(after)
    if old != new:
        raise ValueError(
            f"{_NAME}: {label} must keep the tree structure of the updates, {old}, "
            f"found {new}."
        )


def _forgotten(updates: Any, labels: list[str]) -> str:
    path, shape = next(iter(_shapes(updates).items()))
    own = [label for label in labels if _is_own(label)]
    place = f"after {own[-1]}" if own else f"before {labels[0]}"
    return (
        f"{_NAME}: no stage removes the term axis: updates{path} comes out with shape "
        f"{shape}, expected {shape[1:]}. {_words.AGGREGATOR} is missing, {place}."
    )
