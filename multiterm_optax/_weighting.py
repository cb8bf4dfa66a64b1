"""The contract of a weighting: (gramian, losses) -> weights, a small pure function.

A weighting never sees a parameter. The same object serves ``reweight`` in a
chain, ``weighted`` around an optimizer, and, where it reads losses only, the
losses alone. :func:`method` makes one from what is particular to a method.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from multiterm_optax import _checks, _named, _terms, _words
from multiterm_optax._typing import Gramian, Losses, Mixing, Norms, Scalar, Weights

State = TypeVar("State")


class WeightingInit(Protocol):
    """``init(num_terms) -> state``."""

    def __call__(self, num_terms: int, /) -> Any:
        """Returns the state before the first step."""
        ...


class WeightingUpdate(Protocol):
    """``update(gramian, state, *, losses, present) -> (weights, state)``."""

    def __call__(
        self,
        gramian: Gramian | Norms | None,
        state: Any,
        *,
        losses: Any = None,
        present: Any = None,
        **extra_args: Any,
    ) -> tuple[Weights | Mixing, Any]:
        """Returns this step's weights, [K] or [K, K], and the next state."""
        ...


class Weighting(NamedTuple):
    """A method that turns dot products of gradients, or losses, into weights.

    Attributes:
      init: ``init(num_terms) -> state``.
      update: ``update(gramian, state, *, losses=None, present=None, **extra_args) ->
        (weights, state)``. ``gramian`` is [K, K]; ``losses`` is [K]; ``weights`` is
        [K], or a mixing matrix [K, K] whose row i gives the new gradient of term i. A
        state with a boolean field ``ready``, at any depth, asks for the step to be
        skipped when False. ``present`` [K] says which terms are present in this step,
        and None that all are. The weights are those of the smaller problem with these
        terms only: an absent term gets the weight 0, its entries in the gramian and the
        losses are never read, and its part of the state, its count of steps included,
        stays as it is. If all terms are absent, all weights are 0. ``terms``, for a
        weighting whose signature has it, is a static value that says what the terms are
        called, where the caller sees it. Further keyword-only arguments in the
        signature name the extra arguments that the method reads.
      reads_gramian: Whether ``update`` needs the gramian; where it does not, no
        per-term gradient is needed and ``gramian`` may be None.
      reads_losses: Whether ``update`` needs ``losses``.
      reads_norms: Whether ``update`` needs the gramian's diagonal, the squared norms of
        the gradients. Where it is True and ``reads_gramian`` is not, callers pass the
        squared norms [K] in place of the gramian.
    """

    init: WeightingInit
    update: WeightingUpdate
    reads_gramian: bool = True
    reads_losses: bool = False
    reads_norms: bool = False


class Problem(NamedTuple):
    """One step as a method sees it, checked and with zeros for absent terms.

    Outer derivatives see constants here.

    Attributes:
      num_terms: K.
      present: Which terms are present [K]; None: all.
      gramian: Dot products [K, K], where the method reads them.
      squared_norms: Their diagonal [K], where the method reads it.
      losses: The losses [K], in the default floating dtype, where the method reads
        them.
      extra_args: The other extra arguments that were passed.
    """

    num_terms: int
    present: Bool[Array, " K"] | None
    gramian: Any = None
    squared_norms: Any = None
    losses: Any = None
    extra_args: Any = None

    @property
    def num_present(self) -> Scalar:
        """The number of present terms, but at least 1, so that it can divide."""
        if self.present is None:
            return self.num_terms
        # Weakly typed, like the number K itself: it takes on the dtype of its operands.
        number = jnp.maximum(jnp.sum(self.present), 1)
        return jax.lax.convert_element_type(number, float)

    @property
    def any_present(self) -> Bool[Array, ""] | bool:
        """Whether any term is present."""
        return True if self.present is None else jnp.any(self.present)

    def only_present(self, values: jax.Array) -> jax.Array:
        """Zeros in place of absent terms."""
        return _terms.only_present(self.present, values)

    def keep_absent(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """The new values [..., K] of the present terms, the old ones of the others."""
        return new if self.present is None else jnp.where(self.present, new, old)

    def equal_shares(self, dtype: Any) -> Weights:
        """One over the number of present terms, for each of them."""
        ones = self.only_present(jnp.ones((self.num_terms,), dtype))
        return ones / self.num_present

    def mean(self, values: Float[Array, " K"]) -> jax.Array:
        """The mean over the present terms."""
        return jnp.sum(self.only_present(values)) / self.num_present

    def largest(self, values: Float[Array, " K"]) -> jax.Array:
        """The maximum over the present terms, or minus infinity if there are none."""
        if self.present is None:
            return jnp.max(values)
        return jnp.max(values, where=self.present, initial=-jnp.inf)


def method(
    name: str,
    init: Callable[[int], State],
    find: Callable[[Problem, State], tuple[Weights | Mixing, State]],
    *,
    reads_gramian: bool = False,
    reads_norms: bool = False,
    reads_losses: bool = False,
    by_term: tuple[str, ...] = (),
    extra_args: tuple[str, ...] = (),
) -> Weighting:
    """Makes a weighting from what is particular to a method.

    Args:
      name: The factory, for the messages.
      init: From the number of terms to the state before the first step.
      find: ``(problem, state) -> (weights, state)``. It may disregard absent terms:
        their weights are set to zero and their part of the state is kept here.
      reads_gramian: Whether ``find`` reads ``problem.gramian``.
      reads_norms: Whether it reads ``problem.squared_norms``.
      reads_losses: Whether it reads ``problem.losses``.
      by_term: Fields of the state whose last axis is that of the terms.
      extra_args: Names of the extra arguments of ``update`` that ``find`` reads from
        ``problem.extra_args``, which holds those that were passed.
    """

    def update(
        gramian: Any,
        state: State,
        *,
        losses: Any = None,
        present: Any = None,
        terms: _named.Terms | None = None,
        **others: Any,
    ) -> tuple[Weights | Mixing, State]:
        if terms is None:
            terms = _named.of(losses)
            # A user's own weighting may pass on as an array what had names before.
            terms = None if terms is None or terms.names is None else terms
        with _named.seen(terms):
            return step(gramian, state, losses, present, others)

    def step(
        gramian: Any, state: State, losses: Any, present: Any, others: dict[str, Any]
    ) -> tuple[Weights | Mixing, State]:
        if by_term:
            num_terms = getattr(state, by_term[0]).shape[-1]
        else:
            num_terms = _infer_num_terms(gramian, losses, present)
        present = _checks.present(present, name, num_terms)
        problem = Problem(num_terms, present)
        if reads_losses:
            losses = _checks.losses(losses, name, num_terms, needed=True)
            losses = losses.astype(jnp.result_type(float))
            problem = problem._replace(losses=_terms.only_present(present, losses))
        if reads_gramian or reads_norms:
            gramian = _products(gramian, num_terms, reads_gramian, name)
            norms = gramian if gramian.ndim == 1 else jnp.diagonal(gramian)
            problem = problem._replace(squared_norms=problem.only_present(norms))
        if reads_gramian:
            problem = problem._replace(gramian=pairs_present(present, gramian))
        weights, later = find(_constant(problem)._replace(extra_args=others), state)
        weights = mask_weights(present, weights)
        if by_term and present is not None:
            kept = {
                field: problem.keep_absent(getattr(later, field), getattr(state, field))
                for field in by_term
            }
            later = later._replace(**kept)  # pyright: ignore
        return weights, later

    # Callers read from the signature which extra arguments are meant for the method.
    signature = inspect.signature(update)
    parameters = list(signature.parameters.values())
    parameters[-1:-1] = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
        for key in extra_args
    ]
    update.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore

    def start(num_terms: int) -> State:
        # What a chain would pass are the parameters.
        if _checks.as_int(num_terms) is None:
            raise TypeError(
                f"{name}: init takes the number of terms, found "
                f"{_words.describe(num_terms)}. In a chain, write "
                "reweight(weighting, num_terms)."
            )
        return init(num_terms)

    return Weighting(
        start,
        update,
        reads_gramian=reads_gramian,
        reads_losses=reads_losses,
        reads_norms=reads_norms,
    )


def _constant(problem: Problem) -> Problem:
    """The same problem, whose weights are constants to any outer derivative."""
    read = (problem.gramian, problem.squared_norms, problem.losses)
    gramian, norms, losses = jax.lax.stop_gradient(read)
    return problem._replace(gramian=gramian, squared_norms=norms, losses=losses)


def _infer_num_terms(gramian: Any, losses: Any, present: Any) -> int:
    """K where the state does not tell it; 0 if no argument does either."""
    if gramian is not None:
        return jnp.shape(gramian)[-1]
    terms = _named.of(losses if present is None else present)
    return 0 if terms is None else terms.number


def _products(gramian: Any, num_terms: int, all_pairs: bool, name: str) -> jax.Array:
    """The gramian, or the squared norms, as an array of the right shape."""
    shapes = [(num_terms, num_terms)] + [(num_terms,)] * (not all_pairs)
    if gramian is None or jnp.shape(gramian) not in shapes:
        wanted = "[K, K]" if all_pairs else "[K, K], or its diagonal [K]"
        found = "None" if gramian is None else f"shape {jnp.shape(gramian)}"
        raise ValueError(
            f"{name}: gramian must be an array {wanted}, with num_terms={num_terms}, "
            f"found {found}."
        )
    return jnp.asarray(gramian)


def check(weighting: Any, name: str, argument: str = "weighting") -> None:
    """Refuses what is not a weighting."""
    if not isinstance(weighting, Weighting):
        raise TypeError(
            f"{name}: {argument} must be a multiterm_optax.Weighting, such as mgda(), "
            f"found {_words.describe(weighting)}."
        )


def extra_arguments(weighting: Weighting) -> tuple[str, ...]:
    """Names of the extra arguments that a weighting reads."""
    parameters = inspect.signature(weighting.update).parameters.values()
    return tuple(
        one.name
        for one in parameters
        if one.kind is one.KEYWORD_ONLY
        and one.name not in ("losses", "present", "terms")
    )


def weights_from(
    weighting: Weighting,
    products: Gramian | Norms | None,
    state: Any,
    losses: Losses | None,
    present: Bool[Array, " K"] | None = None,
    **extra_args: Any,
) -> tuple[Weights | Mixing, Any]:
    """One step of a weighting on the gramian or the squared norms, if it reads them.

    The losses of absent terms must already be zero. What :mod:`_named` knows of the
    terms is passed on, as an argument, to a weighting that takes it.
    """
    terms = _named.current()
    if terms is not None and "terms" in inspect.signature(weighting.update).parameters:
        extra_args = extra_args | {"terms": terms}
    if present is None:
        return weighting.update(products, state, losses=losses, **extra_args)
    if products is not None:
        products = mask_weights(present, products)
    weights, state = weighting.update(
        products, state, losses=losses, present=present, **extra_args
    )
    # A weighting that the user wrote may ignore ``present``.
    return mask_weights(present, weights), state


def inside(weighting: Weighting, problem: Problem, state: Any) -> tuple[Any, Any]:
    """One step of a weighting on the problem of another one that stands around it."""
    products = problem.gramian
    if products is None:
        products = problem.squared_norms
    return weights_from(
        weighting,
        products,
        state,
        problem.losses,
        problem.present,
        **problem.extra_args,
    )


def reads_of(weighting: Weighting) -> dict[str, Any]:
    """What a weighting reads, as the arguments of :func:`method`."""
    return {
        "reads_gramian": weighting.reads_gramian,
        "reads_norms": weighting.reads_norms,
        "reads_losses": weighting.reads_losses,
        "extra_args": extra_arguments(weighting),
    }


def stateless(num_terms: int) -> optax.EmptyState:
    """The state of a method that remembers nothing and has nothing to check."""
    del num_terms
    return optax.EmptyState()


def mask_weights(
    present: Bool[Array, " K"] | None, weights: Weights | Mixing
) -> Weights | Mixing:
    """Zeros for absent terms in weights [K] or a matrix [K, K]."""
    if weights.ndim == 1:
        return _terms.only_present(present, weights)
    return pairs_present(present, weights)


def pairs_present(
    present: Bool[Array, " K"] | None, matrix: Float[Array, "K K"]
) -> Float[Array, "K K"]:
    """Zeros in the rows and the columns of absent terms; None: all are present."""
    if present is None:
        return matrix
    return jnp.where(present[:, None] & present[None, :], matrix, 0)


def ready(state: Any) -> jax.Array | None:
    """Whether all fields ``ready`` of a state are true; None if it has none."""
    found = [value for _, value in optax.tree.get_all_with_path(state, "ready")]
    return jnp.all(jnp.stack(found)) if found else None


def abstract_products(weighting: Weighting, num_terms: int) -> Any:
    """Shape and dtype of what a weighting reads of the gradients, or None."""
    shape = (num_terms,) * (2 if weighting.reads_gramian else 1)
    if not (weighting.reads_gramian or weighting.reads_norms):
        return None
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))


def neutral_weights(weighting: Weighting, state: Any, num_terms: int) -> jax.Array:
    """Ones, or the identity for a weighting that mixes: the weights before any step."""
    dtype = jnp.result_type(float)

    def update(products: Any, state: Any, losses: Any) -> tuple[Any, Any]:
        with _named.seen(_named.abstract(num_terms)):
            return weights_from(weighting, products, state, losses)

    weights, _ = jax.eval_shape(
        update,
        abstract_products(weighting, num_terms),
        state,
        jax.ShapeDtypeStruct((num_terms,), dtype),
    )
    fill = jnp.ones if weights.ndim == 1 else jnp.eye
    return fill(num_terms, dtype=dtype)
