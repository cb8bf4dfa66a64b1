"""Reads the arguments of a step, so that a stage states only what is specific to it.

Every ``update`` of the library checks its updates, its state and the mask of the
present terms in the same way, and then works on a clean :class:`Step`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import optax
from jaxtyping import Array, Bool

from multiterm_optax import _checks, _named, _terms, _words
from multiterm_optax._typing import Losses

State = TypeVar("State")


class Step(NamedTuple):
    """The checked arguments of one call of ``update``.

    Attributes:
      updates: Leaves [K, *p], by default with zeros for absent terms.
      params: The parameters, or None.
      present: Which terms are present [K]; None: all.
      losses: The losses as the user passed them, or None.
      extra_args: All other extra arguments.
    """

    updates: Any
    params: Any
    present: Bool[Array, " K"] | None
    losses: Any
    extra_args: dict[str, Any]

    def losses_vector(
        self, name: str, num_terms: int, *, needed: bool = False
    ) -> Losses | None:
        """The losses as an array [K] with zeros for absent terms, or None."""
        losses = _checks.losses(self.losses, name, num_terms, needed=needed)
        return losses if losses is None else _terms.only_present(self.present, losses)

    def forwarded(self, **others: Any) -> dict[str, Any]:
        """The extra arguments for an inner transformation that is aware of terms.

        Of ``losses``, ``present`` and what ``others`` replaces, those that are None
        are left out, as if the user had not passed them.
        """
        own = {"losses": self.losses, "present": self.present} | others
        given = {key: value for key, value in own.items() if value is not None}
        return self.extra_args | given


def stage(
    name: str,
    num_terms: int | None,
    init: Callable[[optax.Params], State],
    update: Callable[[Step, State], tuple[Any, State]],
    *,
    inner: str | None = None,
    checks_state: bool = True,
    zeroes_absent: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation of per-term gradients from what it does with a step.

    Args:
      name: The function that the user called, for the messages.
      num_terms: K; None for a stage that takes any number of terms.
      init: From the parameters to the state.
      update: ``(step, state) -> (updates, state)``.
      inner: The field of the state that holds the state of a transformation that the
        user passed; it is not checked.
      checks_state: Whether the state must be one that ``init`` could have made.
      zeroes_absent: Whether ``update`` finds zeros for absent terms. A stage that reads
        its updates more than once, and masks what it makes of them, saves K copies.
    """

    def init_fn(params: optax.Params) -> Any:
        _checks.arrays(params, name)
        return init(params)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        losses: Any = None,
        present: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        with _named.seen(losses):
            _checks.term_axis(updates, params, name, num_terms)
            if checks_state:
                _checks.state(state, init, updates, name, inner=inner)
            if num_terms is None:
                present = _checks.present_in(present, updates, name)
            else:
                present = _checks.present(present, name, num_terms)
            if zeroes_absent:
                updates = jax.tree.map(partial(_terms.only_present, present), updates)
            return update(Step(updates, params, present, losses, extra_args), state)

    # The error messages of a chain say which function made each of its stages.
    update_fn.__qualname__ = f"{name.split('.')[-1]}.<locals>.update_fn"
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def speaking_as(
    name: str, tx: optax.GradientTransformation, *parts: str
) -> optax.GradientTransformationExtraArgs:
    """Returns ``tx``, with errors of its ``parts`` naming ``name`` instead."""
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: optax.Params) -> optax.OptState:
        with _words.speaking_as(name, *parts):
            return tx.init(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        with _words.speaking_as(name, *parts):
            return tx.update(updates, state, params, **extra_args)

    update_fn.__qualname__ = f"{name}.<locals>.update_fn"
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
