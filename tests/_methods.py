"""Every exported weighting, and what it promises: declared once, for all shared tests.

A weighting is found by its return annotation, and built from its signature
(:mod:`tests._arguments`). One that promises more or less than the default, that has
variants worth running through the shared tests, or whose arguments cannot be guessed
says so in its own test file, ``tests/weightings/test_*.py``::

    METHODS = {"mgda": Method(mgda, agrees=True), "mgda l2": Method(mgda, {...})}

A name that is the factory's own replaces the default; others are variants.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests import _arguments
from tests._params import some

FOLDER = Path(__file__).parent / "weightings"

# One of each kind: fixed weights, norms, losses and their memory, a learned state, two
# solvers, a matrix, and one made of others. What a stage does with a weighting is tried
# on these; that it holds for every other, too, is told by ``-m slow``.
REPRESENTATIVE = {
    "by_norm",
    "cagrad",
    "compose",
    "constant",
    "gradnorm",
    "mgda",
    "pcgrad",
    "softadapt",
}


@dataclass(frozen=True)
class Method:
    """One weighting, and its promises beyond those that every one makes.

    Attributes:
      factory: Makes the weighting.
      arguments: Its arguments; ``ByTerm`` where they are one for each term, which the
        shared tests may then permute or leave out.
      permutes: The direction does not depend on the order of the terms. None: that of
        two or three gradients that are neither parallel nor opposed does not; True:
        whatever the gradients.
      anchored: The weights are relative to one of the terms, so that another order of
        the terms, or other terms, give them up to one factor.
      ordered: The order of the terms is part of the problem: they are not permuted, and
        a smaller problem that they are compared with has the first of them.
      invariant: The same of the scale of all gradients, and the weights.
      simplex: The weights are not negative and sum to 1.
      agrees: The direction conflicts with no term.
      shortest: The direction is the min-norm point.
      signed: Weights may be negative, where the method goes uphill on purpose.
      digits: How near float32 comes to float64 over 36 orders of magnitude.
      pareto: It stops wherever no direction helps all terms, and promises no more.
      converges: Whether it comes near the minimum behind Adam. If not, the battery
        asks for finite parameters only, and the method's page says why.
      rate: The peak learning rate in the battery.
      nearness: How near it comes there to the minimum, relative to the start.
      relative: Fields of the state that compare the terms with one another: those of a
        smaller problem have the same sum.
      fixed: Fields of the state that come from K alone and no step changes.
    """

    factory: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    permutes: bool | None = None
    anchored: bool = False
    ordered: bool = False
    invariant: bool | None = None
    simplex: bool = False
    agrees: bool = False
    shortest: bool = False
    signed: bool = False
    digits: float = 1e-5
    pareto: bool = False
    converges: bool = True
    rate: float = 0.1
    nearness: float = 1e-3
    relative: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def make(self, terms, **options):
        """The weighting for K terms, or for the terms with the given indices."""
        indices = range(terms) if isinstance(terms, int) else terms
        filled = {k: _arguments.fill(v, indices) for k, v in self.arguments.items()}
        return self.factory(**{**filled, **options})

    @property
    def names_terms(self):
        """Whether the arguments say which term is which."""
        return any(isinstance(v, _arguments.ByTerm) for v in self.arguments.values())

    @property
    def drawn(self):
        """Whether random numbers are drawn: permuting the terms permutes the odds."""
        return "key" in self.arguments

    @functools.cached_property
    def reads(self):
        """What it reads of the gradients: "gramian", "norms" or nothing."""
        made = self.make(3)
        return "gramian" if made.reads_gramian else "norms" if made.reads_norms else ""

    @functools.cached_property
    def reads_losses(self):
        return self.make(3).reads_losses


@functools.cache
def exported():
    """Factories of the top level: public functions whose return is a Weighting."""
    module = importlib.import_module("multiterm_optax")
    kinds = (module.Weighting, "Weighting")
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation in kinds
    }


def _declared():
    """What the methods' own test files say."""
    found = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        if re.search(r"^METHODS = ", path.read_text(encoding="utf-8"), re.MULTILINE):
            module = importlib.import_module(f"tests.weightings.{path.stem}")
            twice = found.keys() & module.METHODS.keys()
            assert not twice, f"{path.name} declares {twice} once more"
            found |= module.METHODS
    return found


@functools.cache
def methods():
    """Every method and variant by name, the factories' own names first."""
    declared, found = _declared(), {}
    for name, factory in sorted(exported().items()):
        method = declared.pop(name, None) or Method(factory)
        if method.factory is factory:
            known = _arguments.required(factory, name, "weightings", method.arguments)
            method = replace(method, arguments=known)
        found[name] = method
    found |= declared
    return {
        name: replace(one, permutes=False)
        if one.drawn or one.anchored or one.ordered
        else one
        for name, one in found.items()
    }


def sampled(names):
    """The names as parameters, of which some of each kind run by default."""
    return some(names, REPRESENTATIVE)


def relative(method, weights):
    """The weights, or, of an anchored method, their shares."""
    if not method.anchored:
        return weights
    total = np.sum(np.abs(weights), axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1)


@functools.cache
def factories():
    """The methods under the factories' own names."""
    return {name: methods()[name] for name in sorted(exported())}


def build(name, terms, **options):
    """The weighting of a factory, with its required arguments filled in."""
    return methods()[name].make(terms, **options)


def products(method, gramian):
    """What a caller gives the weighting of a gramian, or of a batch of them."""
    if method.reads == "norms":
        return gramian.diagonal(axis1=-2, axis2=-1)
    return gramian if method.reads else None
