"""Which term is which: names, where the structure of the losses is seen.

The terms stand in the order of ``jax.tree.leaves(losses)``, which sorts a dict. A
function that is given the losses in their own structure says so with :func:`seen`, and
every check below it can then compare a dict with them, look up a name, and print the
order. All of this happens while tracing and involves structures only: no state holds a
name.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.tree_util as jtu

_SHOWN = 150  # characters of a structure, or of an order, in a message


@jtu.register_static
@dataclass(frozen=True)
class Terms:
    """The structure of K losses: static, so that it may be an argument under a jit.

    Attributes:
      structure: That of the losses.
      number: K.
      names: Nested ones joined by "/", those of a list "0", "1" and so on; None for an
        array.
      abstract: Whether only shapes are asked for, so that any structure will do.
    """

    structure: Any
    number: int
    names: tuple[str, ...] | None = None
    abstract: bool = False

    def __str__(self) -> str:
        """The structure for a message."""
        if self.names is None:
            return "an array without names"
        text = str(self.structure).removeprefix("PyTreeDef(").removesuffix(")")
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    @property
    def order(self) -> str:
        """The names in a row, for a message; empty where they say nothing."""
        names = self.names
        if names is None or names == tuple(map(str, range(self.number))):
            return ""
        text = ", ".join(names)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SEEN: ContextVar[Terms | None] = ContextVar("multiterm_optax terms", default=None)


@contextlib.contextmanager
def seen(losses: Any) -> Iterator[None]:
    """Says what the losses look like, as Terms, an array [K] or a tree; None: unseen.

    An outer :func:`seen` does not count, so that a function whose arguments hold the
    losses depends on nothing but them.
    """
    token = _SEEN.set(of(losses))
    try:
        yield
    finally:
        _SEEN.reset(token)


def current() -> Terms | None:
    """The terms as the innermost :func:`seen` knows them."""
    return _SEEN.get()


def of(losses: Any) -> Terms | None:
    """The terms of an array [K] or a pytree of K scalars, unchecked."""
    if losses is None or isinstance(losses, Terms):
        return losses
    paths, structure = jtu.tree_flatten_with_path(losses)
    shape = getattr(paths[0][1], "shape", ()) if len(paths) == 1 else ()
    if len(shape) == 1:
        return Terms(structure, shape[0])
    if jtu.all_leaves([losses]):
        return Terms(structure, 1)
    names = [jtu.keystr(path, simple=True, separator="/") for path, _ in paths]
    if len(set(names)) < len(names):
        names = [jtu.keystr(path) for path, _ in paths]
    return Terms(structure, len(names), tuple(names))


def abstract(num_terms: int) -> Terms:
    """Terms of which only the number is known, and needed."""
    return Terms(jax.tree.structure(None), num_terms, abstract=True)


def is_tree(value: Any) -> bool:
    """Whether K values come as a pytree, and not as an array or a list of values.

    A list is an array, except where it is the structure of the losses themselves.
    """
    if value is None or isinstance(value, str) or jtu.all_leaves([value]):
        return False
    terms = current()
    if terms is not None and jax.tree.structure(value) == terms.structure:
        return True
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return any(map(is_tree, value))
    return True


def by_name(value: Any, argument: str, name: str) -> Any:
    """The values of a tree shaped like the losses, in a list; others as they are.

    Where the losses are seen, a tree of another structure is refused.
    """
    if not is_tree(value):
        return value
    terms = current()
    found = jax.tree.structure(value)
    if terms is not None and not terms.abstract and terms.structure != found:
        raise ValueError(
            f"{name}: {argument} must be an array [K], or have the structure of the "
            f"losses, {terms}, found {of(value)}."
        )
    leaves = jtu.tree_leaves_with_path(value)
    if len(leaves) == 1 and getattr(leaves[0][1], "ndim", 0) == 1:
        return leaves[0][1]  # an array in a container, as the losses may be one, too
    for path, leaf in leaves:
        if getattr(leaf, "ndim", 0):
            raise ValueError(
                f"{name}: {argument} must hold one value for each term, found shape "
                f"{leaf.shape} in {argument}{jtu.keystr(path)}."
            )
    return [leaf for _, leaf in leaves]


def in_order(num_terms: int) -> str:
    """``" (in the order a, b)"`` for a message, where K names are seen, else ``""``."""
    terms = current()
    if terms is None or terms.number != num_terms or not terms.order:
        return ""
    return f" (in the order {terms.order})"


def listed(values: Any) -> str:
    """``" (a, b)"`` for a message, where the values have names, else ``""``."""
    terms = of(values) if is_tree(values) else None
    return f" ({terms.order})" if terms is not None and terms.order else ""
