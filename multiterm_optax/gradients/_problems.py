"""One step of the losses: what the weights are found from, and the way back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool

from multiterm_optax import _named
from multiterm_optax._typing import Gramian, LossesFn, Norms, Weights
from multiterm_optax.gradients import _gramian, _inputs, _row_problem


class Problem(NamedTuple):
    """What a step needs of the losses; the gradients are tuples like ``primals``."""

    losses: Any
    aux: Any
    primals: tuple[Any, ...]
    gramian: Callable[[list[bool] | None], Gramian]
    squared_norms: Callable[[list[bool] | None], Norms]
    pullback: Callable[[Weights], tuple[Any, ...]]


def of_terms(
    losses_fn: LossesFn,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    way: _gramian.Way | None,
    num_terms: int,
    name: str,
) -> Problem:
    """K losses of any structure."""
    function, primals = _inputs.of_primals(
        losses_fn, args, kwargs, argnums, has_aux, name
    )
    losses, linear, aux = jax.linearize(function, *primals, has_aux=True)
    found = _inputs.count_losses(losses, name)
    if found != num_terms:
        raise ValueError(
            f"{name}: losses_fn must return num_terms={num_terms} losses, as given to "
            f"init, found {found}{_named.listed(losses)}."
        )
    transposed = jax.linear_transpose(linear, *primals)

    def read(function: Callable[..., Any]) -> Callable[[list[bool] | None], Any]:
        return lambda shared: function(
            linear,
            primals,
            losses,
            num_terms=num_terms,
            way=way,
            shared=shared,
            name=name,
        )

    return Problem(
        losses,
        aux,
        primals,
        read(_gramian.gramian_of),
        read(_gramian.squared_norms_of),
        lambda weights: transposed(_inputs.cotangents(losses, weights)),
    )


def of_rows(
    losses_fn: LossesFn,
    num_terms: int,
    present: Bool[Array, " K"] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
) -> Problem:
    """K losses of terms that own the rows of a batch."""
    if len(args) < 2:
        raise ValueError(
            f"{name}: with gramian='rows' update takes (state, params, rows, *args), "
            f"found {len(args)} arguments after the state."
        )
    rows = _row_problem.row_problem(
        losses_fn, num_terms, present, name, *args, **kwargs
    )
    return Problem(
        rows.losses,
        None,
        args[:1],
        rows.gramian,
        rows.squared_norms,
        lambda weights: (rows.pullback(weights),),
    )
