"""Finds every exported factory and builds it from its signature alone.

A new method is covered by the shared contract as soon as its stage exports it. Only a
required argument under a name not seen before asks for a line, in ``ARGUMENTS``.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

import multiterm_optax

TERMS = 3

# Stage: whether its transformations keep the term axis. Stages that are no
# transformations of per-term gradients have contracts of their own.
TRANSFORMATIONS = {
    "transforms": True,
    "aggregators": False,
    "wrappers": False,
    "optimizers": False,
}
OTHER_STAGES = {"gradients", "weightings", "metrics"}


def _weighting():
    return importlib.import_module("multiterm_optax.weightings").equal()


def _whole():
    """An optimizer from any number of terms to one update."""
    return optax.chain(*_stages())


def _stages():
    sum_terms = importlib.import_module("multiterm_optax.aggregators").sum_terms
    return sum_terms(), optax.adam(0.1, eps=1e-3)


# How to fill a required argument: by its name, or by "stage.name" or "factory.name"
# where the name means something else there. Values that need building are callables
# without arguments.
ARGUMENTS = {
    "num_terms": lambda: TERMS,
    "learning_rate": lambda: 0.1,
    # Optax's Adam divides by zero in float16 with its default eps, which rounds to 0.
    "inner": lambda: optax.adam(0.1, eps=1e-3),
    "transforms.inner": lambda: optax.scale_by_adam(eps=1e-3),
    # These stand around a whole optimizer, ``weighted`` around an ordinary one.
    "multi_steps.inner": _whole,
    "apply_if_finite.inner": _whole,
    "masked.inner": _whole,
    "every_k_schedule": lambda: 2,
    "max_consecutive_errors": lambda: 2,
    "mask": lambda: lambda params: jax.tree.map(lambda p: p.ndim > 0, params),
    "weighting": _weighting,
    "key": lambda: jax.random.key(0),
    "steps_per_epoch": lambda: 2,
}


# The same for ``*args``, by the name of the factory.
POSITIONAL = {"chain": _stages}


@dataclass(frozen=True)
class Factory:
    """One exported factory and what the contract needs to know of it."""

    stage: str
    name: str
    function: Any

    @property
    def keeps_terms(self):
        return TRANSFORMATIONS[self.stage]

    def takes(self, argument):
        return argument in inspect.signature(self.function).parameters

    def required(self):
        """Its required arguments, filled in."""
        filled = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.default is not parameter.empty or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            ):
                continue
            for key in (f"{self.name}.{name}", f"{self.stage}.{name}", name):
                if key in ARGUMENTS:
                    filled[name] = ARGUMENTS[key]()
                    break
            else:
                raise AssertionError(
                    f"{self.stage}.{self.name} requires {name!r}, which the contract "
                    "cannot guess: say in ARGUMENTS how to fill it"
                )
        return filled

    def build(self, **options):
        """Builds it; options the factory does not take are left out."""
        taken = {k: v for k, v in options.items() if self.takes(k)}
        stages = POSITIONAL.get(self.name, tuple)()
        return self.function(*stages, **{**self.required(), **taken})


def stages():
    """The stage packages that exist."""
    found = pkgutil.iter_modules(multiterm_optax.__path__)
    return [s.name for s in found if s.ispkg and not s.name.startswith("_")]


def exported_functions(stage):
    """Public functions of a stage, less classes and modules."""
    module = importlib.import_module(f"multiterm_optax.{stage}")
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(value)
    }


def factories():
    """Every exported factory of a transformation, in the order of the flow."""
    return [
        Factory(stage, name, function)
        for stage in TRANSFORMATIONS
        if stage in stages()
        for name, function in exported_functions(stage).items()
    ]


def example_losses(dtype=jnp.float32):
    """Losses for factories that read them: always passed, by most ignored."""
    return jnp.asarray([0.5, 2.0, 1.0], dtype)
