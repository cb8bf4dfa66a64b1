# Longer than most: it opens programs and runs parts of them.
"""Linear programs, opened to show which operations they are made of."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

CALLS = ("jit", "pjit", "closed_call", "core_call")


class Opened(NamedTuple):
    """The operations of a linear program.

    Attributes:
      whole: The program, of flat inputs.
      open: Whether it may be taken apart: not if its operations have effects, or if
        types say how arrays lie over devices.
      inputs: The variables of the inputs.
      outputs: The variables of the outputs.
      known: The values of the variables that no input enters.
      equations: The operations that an input enters.
      structure: The tree of the outputs.
    """

    whole: Callable[..., Any]
    open: bool
    inputs: list[Any]
    outputs: list[Any]
    known: dict[Any, Any]
    equations: list[Any]
    structure: Any

    def run(self, equations: list[Any], env: dict[Any, Any]) -> Any:
        """The outputs, from some of the operations; what these lack is zero."""

        def fill(var: Any) -> None:
            if not (has(var, env) or has(var, self.known)):
                env[var] = jnp.zeros(var.aval.shape, var.aval.dtype)

        for eqn in equations:
            for var in eqn.invars:
                fill(var)
            run(eqn, env, self.known)
        for var in self.outputs:
            fill(var)
        outputs = [read(var, env, self.known) for var in self.outputs]
        return self.structure.unflatten(outputs)


def flatten(linear: Callable[..., Any], primals: tuple[Any, ...]) -> Opened:
    """Opens a linear program of ``primals``."""
    leaves, structure = jax.tree.flatten(primals)
    outputs = jax.tree.structure(jax.eval_shape(linear, *primals))

    def whole(*flat: Any) -> Any:
        return linear(*structure.unflatten(flat))

    outer = jax.make_jaxpr(whole)(*leaves)
    closed = jax.make_jaxpr(lambda *flat: inlined(outer, flat))(*leaves)
    jaxpr = closed.jaxpr
    placed = any(map(_is_placed, (*jaxpr.constvars, *jaxpr.invars)))
    if jaxpr.effects or placed:
        return Opened(whole, False, jaxpr.invars, jaxpr.outvars, {}, [], outputs)
    known, equations = _known(closed)
    return Opened(whole, True, jaxpr.invars, jaxpr.outvars, known, equations, outputs)


def restrict(
    linear: Callable[..., Any], primals: tuple[Any, ...], include: list[bool]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The program of some inputs only, without operations that they do not enter."""
    leaves = jax.tree.leaves(primals)
    program = flatten(linear, primals)
    chosen = [i for i, flag in enumerate(include) if flag]
    if not program.open:

        def with_zeros(*tangents: Any) -> Any:
            full = list(map(jnp.zeros_like, leaves))
            for i, tangent in zip(chosen, tangents, strict=True):
                full[i] = tangent
            return program.whole(*full)

        return with_zeros, tuple(leaves[i] for i in chosen)

    inputs = [program.inputs[i] for i in chosen]
    reached, equations = set(inputs), []
    for eqn in program.equations:
        if any(not isinstance(v, core.Literal) and v in reached for v in eqn.invars):
            reached.update(eqn.outvars)
            equations.append(eqn)

    def restricted(*tangents: Any) -> Any:
        return program.run(equations, dict(zip(inputs, tangents, strict=True)))

    return restricted, tuple(leaves[i] for i in chosen)


def inlined(closed: Any, args: Any) -> list[Any]:
    """Runs a program with the calls in it opened, to show their operations."""
    jaxpr, env = closed.jaxpr, {}
    env.update(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in CALLS and _is_plain(eqn):
            inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
            values = [read(var, env) for var in eqn.invars]
            env.update(zip(eqn.outvars, inlined(inner, values), strict=True))
        else:
            run(eqn, env)
    return [read(var, env) for var in jaxpr.outvars]


def _is_plain(eqn: Any) -> bool:
    """Whether a call says nothing about devices."""
    inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
    shardings = (
        *eqn.params.get("in_shardings", ()),
        *eqn.params.get("out_shardings", ()),
    )
    return hasattr(inner, "consts") and all(
        type(one).__name__ == "UnspecifiedValue" for one in shardings
    )


def _is_placed(var: Any) -> bool:
    """Whether the type of a variable says how it lies over devices."""
    spec = getattr(getattr(var.aval, "sharding", None), "spec", ())
    return any(spec) or bool(getattr(var.aval, "vma", ()))


def _known(closed: Any) -> tuple[dict[Any, Any], list[Any]]:
    """The values that no input enters, and the operations that are left."""
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    left = []
    for eqn in closed.jaxpr.eqns:
        if all(has(var, known) for var in eqn.invars):
            run(eqn, known)
        else:
            left.append(eqn)
    return known, left


def read(var: Any, *environments: dict[Any, Any]) -> Any:
    """The value of a variable."""
    if isinstance(var, core.Literal):
        return var.val
    return next(env[var] for env in environments if var in env)


def has(var: Any, env: dict[Any, Any]) -> bool:
    """Whether the value of a variable is known."""
    return isinstance(var, core.Literal) or var in env


def run(eqn: Any, env: dict[Any, Any], *others: dict[Any, Any]) -> None:
    """Runs one operation, and adds its results to ``env``."""
    values = [read(var, env, *others) for var in eqn.invars]
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*values, **params)
    found = found if eqn.primitive.multiple_results else [found]
    env.update(zip(eqn.outvars, found, strict=True))


def equations(
    function: Callable[..., Any], args: tuple[Any, ...]
) -> Iterator[core.JaxprEqn]:
    """The equations of a program, including those inside loops, branches and calls."""
    return _inside(jax.make_jaxpr(function)(*args).jaxpr)


def _inside(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        yield from below(eqn)


def below(eqn: core.JaxprEqn) -> Iterator[core.JaxprEqn]:
    """The equations inside one."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from _inside(inner)
