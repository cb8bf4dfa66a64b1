"""Splits a linear function of K outputs into K functions of one output.

Transposing ``tangents -> [K]`` with a one-hot cotangent multiplies numeric zeros
through everything that the other terms depend on. Transposing one output alone visits
only what this output depends on. In a pytree of scalars, an output is a leaf. In an
array, the operations that assembled it (``jnp.stack``, ``jnp.array``,
``jnp.concatenate``, a product with constant weights, a change of dtype or sign) are
followed back to the scalar.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from multiterm_optax.gradients import _programs

Read = Callable[[jax.Array], jax.Array]

# Outputs are separate if an operation serves no more of them than this on average, so
# that the program of all passes is at most this many times as long as that of one.
_MAX_SHARED = 2.0


def split_outputs(
    linear: Callable[..., Any], tangents: tuple[Any, ...], num_terms: int
) -> list[Callable[..., jax.Array]]:
    """Returns K functions of ``tangents``, the i-th giving the i-th loss's tangent."""
    closed = _traced(linear, tangents)
    makers = _makers(closed)

    def one_output(var: Any, read: Read) -> Callable[..., jax.Array]:
        if isinstance(var, core.Literal):
            return lambda *_: read(jnp.asarray(var.val, jnp.result_type(var.val)))
        needed = _needed(var, makers)
        jaxpr = closed.jaxpr
        if not jaxpr.effects:
            jaxpr = jaxpr.replace(eqns=[eqn for eqn in jaxpr.eqns if id(eqn) in needed])
        alone = core.jaxpr_as_fun(closed.replace(jaxpr=jaxpr.replace(outvars=[var])))
        return lambda *args: read(alone(*jax.tree.leaves(args))[0])

    return [one_output(var, read) for var, read in _scalars(closed, makers, num_terms)]


def are_separate(
    linear: Callable[..., Any], tangents: tuple[Any, ...], num_terms: int
) -> bool:
    """Whether hardly any operation serves several outputs, as in heads on features."""
    closed = _traced(linear, tangents)
    makers = _makers(closed)
    counts: Counter[int] = Counter()
    for var, _ in _scalars(closed, makers, num_terms):
        if not isinstance(var, core.Literal):
            counts.update(_needed(var, makers))
    sizes = {
        id(eqn): 1 + sum(1 for _ in _programs.below(eqn)) for eqn in closed.jaxpr.eqns
    }
    whole = sum(sizes[key] for key in counts)
    # Of few outputs a quarter of what is between nothing in common and all.
    limit = min(_MAX_SHARED, 1 + (num_terms - 1) / 4)
    return sum(sizes[key] * counts[key] for key in counts) <= limit * whole


def _traced(linear: Callable[..., Any], tangents: tuple[Any, ...]) -> Any:
    flat, structure = jax.tree.flatten(tangents)
    closed = jax.make_jaxpr(lambda *leaves: linear(*structure.unflatten(leaves)))(*flat)
    makers = _makers(closed)
    ends = [var for var in closed.jaxpr.outvars if not isinstance(var, core.Literal)]
    names = {makers[var].primitive.name for var in ends if var in makers}
    if not names.isdisjoint(_programs.CALLS):
        # The losses come out of one call, as those of a jitted function do.
        return jax.make_jaxpr(lambda *leaves: _programs.inlined(closed, leaves))(*flat)
    return closed


def _makers(closed: Any) -> dict[Any, core.JaxprEqn]:
    """The operation that makes a variable."""
    return {out: eqn for eqn in closed.jaxpr.eqns for out in eqn.outvars}


def _needed(var: Any, makers: dict[Any, core.JaxprEqn]) -> set[int]:
    """The identities of the operations that a variable depends on."""
    found: set[int] = set()
    ahead = [var]
    while ahead:
        one = ahead.pop()
        eqn = None if isinstance(one, core.Literal) else makers.get(one)
        if eqn is not None and id(eqn) not in found:
            found.add(id(eqn))
            ahead.extend(eqn.invars)
    return found


def _scalars(
    closed: Any, makers: dict[Any, core.JaxprEqn], num_terms: int
) -> list[tuple[Any, Read]]:
    """The variable that holds each loss's tangent, and how to read it."""
    jaxpr = closed.jaxpr
    constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    if len(jaxpr.outvars) == num_terms:  # a pytree of scalars (or K = 1)
        return [(var, lambda x: x.reshape(())) for var in jaxpr.outvars]
    (array,) = jaxpr.outvars
    return [_element(array, i, makers, constants) for i in range(num_terms)]


def _element(
    var: Any, index: int, makers: dict[Any, Any], constants: dict[Any, Any]
) -> tuple[Any, Read]:
    """The variable that holds element ``index`` of a vector, and how to read it."""
    if isinstance(var, core.Literal) or var not in makers:
        return var, lambda x: x[index]
    eqn = makers[var]
    kind, operands = eqn.primitive.name, eqn.invars
    if kind == "stack" and eqn.params["axis"] == 0:
        return operands[index], lambda x: x
    if kind == "concatenate":
        for operand in operands:
            if index < operand.aval.shape[0]:
                return _element(operand, index, makers, constants)
            index -= operand.aval.shape[0]
    if kind in ("broadcast_in_dim", "reshape") and operands[0].aval.shape == ():
        return operands[0], lambda x: x
    if kind in ("neg", "convert_element_type", "copy"):
        inner, read = _element(operands[0], index, makers, constants)
        dtype, sign = var.aval.dtype, -1 if kind == "neg" else 1
        return inner, lambda x: sign * read(x).astype(dtype)
    if kind == "mul":
        for factor, operand in (operands, operands[::-1]):
            value = getattr(factor, "val", constants.get(factor))
            if value is not None and operand.aval.shape == var.aval.shape:
                weight = jnp.broadcast_to(value, var.aval.shape)[index]
                inner, read = _element(operand, index, makers, constants)
                return inner, _weighted(weight, read)
    return var, lambda x: x[index]


def _weighted(weight: jax.Array, read: Read) -> Read:
    return lambda x: weight * read(x)
