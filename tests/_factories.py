"""Finds every exported factory and builds it from its signature alone.

A new method is covered by the shared contract as soon as its stage exports it. Only a
required argument with a new name needs a line in tests/_arguments.py.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

import multiterm_optax
from tests import _arguments

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
        found = _arguments.required(self.function, self.name, self.stage)
        return {k: _arguments.fill(v, range(TERMS)) for k, v in found.items()}

    def build(self, **options):
        """Builds it; options the factory does not take are left out."""
        taken = {k: v for k, v in options.items() if self.takes(k)}
        stages = _arguments.POSITIONAL.get(self.name, tuple)()
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


def example_params(dtype):
    """A nested tree with a matrix, a scalar and a None; every leaf costs programs."""
    matrix = np.random.default_rng(0).normal(size=(3, 2))
    return {
        "dense": {"w": jnp.asarray(matrix, dtype)},
        "frozen": None,
        "rest": (jnp.asarray(1.0, dtype), None),
    }


def example_losses(dtype=jnp.float32):
    """Losses for factories that read them: always passed, by most ignored."""
    return jnp.asarray([0.5, 2.0, 1.0], dtype)
