"""How the shared tests fill in what a factory requires: one table for all of them.

A new factory whose required arguments have names listed here needs no line. Others
declare theirs in ``METHODS`` of their own test file (:mod:`tests._methods`), or here.
"""

import importlib
import inspect
from dataclasses import dataclass

import jax
import numpy as np
import optax


@dataclass(frozen=True)
class ByTerm:
    """One value for each term, in turn where there are more terms than values."""

    values: tuple

    def at(self, indices):
        chosen = [self.values[i % len(self.values)] for i in indices]
        return chosen if isinstance(chosen[0], str) else np.array(chosen)


def _equal():
    return importlib.import_module("multiterm_optax").equal()


def _stages():
    sum_terms = importlib.import_module("multiterm_optax").sum_terms
    return sum_terms(), optax.adam(0.1, eps=1e-3)


def _whole():
    """An optimizer from any number of terms to one update."""
    return optax.chain(*_stages())


# By the name of the argument, or by "stage.argument" or "factory.argument" where the
# name means something else there. A function gets the number of terms.
ARGUMENTS = {
    "num_terms": lambda terms: terms,
    "learning_rate": lambda terms: 0.1,
    # Optax's Adam divides by zero in float16 with its default eps, which rounds to 0.
    "inner": lambda terms: optax.adam(0.1, eps=1e-3),
    "transforms.inner": lambda terms: optax.scale_by_adam(eps=1e-3),
    # These stand around a whole optimizer, ``weighted`` around an ordinary one.
    "multi_steps.inner": lambda terms: _whole(),
    "apply_if_finite.inner": lambda terms: _whole(),
    "masked.inner": lambda terms: _whole(),
    "every_k_schedule": lambda terms: 2,
    "max_consecutive_errors": lambda terms: 2,
    "mask": lambda terms: lambda params: jax.tree.map(lambda p: p.ndim > 0, params),
    "weighting": lambda terms: _equal(),
    "key": lambda terms: jax.random.key(0),
    "steps_per_epoch": lambda terms: 2,
    "trim": lambda terms: 1,
    "inexact_mgda.eps": lambda terms: 1e-3,
}

# The same for ``*args``, by the name of the factory.
POSITIONAL = {"chain": _stages}


def fill(value, indices):
    """A value of the table, or of a declaration, for the terms with these indices."""
    if isinstance(value, ByTerm):
        return value.at(indices)
    return value(len(indices)) if inspect.isfunction(value) else value


def required(function, name, stage, given=()):
    """What is given, and the other arguments without a default, from the table."""
    found = dict(given)
    for argument, parameter in inspect.signature(function).parameters.items():
        starred = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if argument in found or starred or parameter.default is not parameter.empty:
            continue
        keys = (f"{name}.{argument}", f"{stage}.{argument}", argument)
        known = [key for key in keys if key in ARGUMENTS]
        assert known, (
            f"{stage}.{name} requires {argument!r}, which the shared tests cannot "
            "guess: declare it in METHODS of the method's own test file, or say in "
            "tests/_arguments.py how to fill it"
        )
        found[argument] = ARGUMENTS[known[0]]
    return found
