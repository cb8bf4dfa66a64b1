# Longer than most: it reads a program, takes it apart, and runs what is left.
"""Where parameters enter the linear program of the losses, and what remains of it.

The losses' tangents are a linear program of the parameters' tangents. A dense layer's
matrix t enters it in one operation, ``y = x t`` with a constant x. With y as an input
in place of t, the transposed program gives the losses' derivatives with respect to y,
and no product with x is taken; ``_cut_products`` makes the gramian from them and x.
Convolutions and rows of tables are cut in the same way. Transposes, reshapes and
changes of dtype may stand before the operation. A parameter that is used twice, or in
another way (also within a loop, ``jax.checkpoint`` or a function with
``jax.custom_vjp``), stays an input.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from multiterm_optax.gradients import _programs
from multiterm_optax.gradients._cut_kinds import KINDS, Kind

# Operations that keep a parameter's elements and repeat none, as far as sizes agree.
_VIEWS = (
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "expand_dims",
    "reshape",
    "squeeze",
    "transpose",
)


class Cut(NamedTuple):
    """The only operation that a parameter enters.

    Attributes:
      leaf: The position of the parameter among the leaves.
      apply: ``(constant, parameter) -> output``, linear in the parameter.
      constant: The operation's other operand.
      output: Shape and dtype of the operation's output.
      kind: The operation as a matrix product.
    """

    leaf: int
    apply: Callable[[Any, Any], Any]
    constant: Any
    output: jax.ShapeDtypeStruct
    kind: Kind


class Program(NamedTuple):
    """A linear program with some of its inputs replaced by the outputs of cuts.

    Attributes:
      rest: From the tangents of the inputs below to those of the losses.
      inputs: The parameters that were not cut, then the outputs of the cuts, in shape
        and dtype.
      kept: The positions of these parameters among the leaves.
      cuts: The cuts.
    """

    rest: Callable[..., Any]
    inputs: tuple[Any, ...]
    kept: list[int]
    cuts: list[Cut]


def find(
    linear: Callable[..., Any],
    primals: tuple[Any, ...],
    worth: Callable[[Cut], bool] | None,
) -> Program:
    """Cuts ``linear`` wherever that is possible and ``worth`` it; None if nowhere."""
    leaves, structure = jax.tree.flatten(primals)
    whole = Program(
        lambda *flat: linear(*structure.unflatten(flat)),
        tuple(leaves),
        list(range(len(leaves))),
        [],
    )
    if worth is None:
        return whole
    program = _programs.flatten(linear, primals)
    if not program.open:
        return whole
    known, equations = program.known, program.equations
    uses = defaultdict(list)
    for eqn in equations:
        for var in eqn.invars:
            if not isinstance(var, core.Literal):
                uses[var].append(eqn)
    for var in program.outputs:
        if not isinstance(var, core.Literal):
            uses[var].append(None)

    cuts, ends, gone = [], [], set()
    for leaf, var in enumerate(program.inputs):
        found = _cut(leaf, var, uses, known)
        if found is not None and worth(found[0]):
            cuts.append(found[0])
            ends.append(found[1][-1].outvars[0])
            gone.update(map(id, found[1]))
    if not cuts:
        return whole
    cut = {one.leaf for one in cuts}
    kept = [leaf for leaf in range(len(leaves)) if leaf not in cut]
    inputs = [program.inputs[leaf] for leaf in kept] + ends
    remaining = [eqn for eqn in equations if id(eqn) not in gone]

    def rest(*tangents: Any) -> Any:
        return program.run(remaining, dict(zip(inputs, tangents, strict=True)))

    given = tuple(leaves[leaf] for leaf in kept)
    return Program(rest, (*given, *(one.output for one in cuts)), kept, cuts)


def _cut(
    leaf: int, start: Any, uses: dict[Any, list[Any]], known: dict[Any, Any]
) -> tuple[Cut, list[Any]] | None:
    """The cut of one parameter, and the operations that it takes away."""
    var, chain = start, []
    while True:
        eqn = uses[var][0] if len(uses[var]) == 1 else None
        if eqn is None:
            return None
        chain.append(eqn)
        if not _is_view(eqn):
            break
        (var,) = eqn.outvars
    describe = KINDS.get(eqn.primitive.name)
    kind = describe and describe(eqn, eqn.invars.index(var))
    if kind is None or not _programs.has(kind.other, known):
        return None
    other = kind.other

    def apply(constant: Any, parameter: Any) -> Any:
        env = {start: parameter}
        if not isinstance(other, core.Literal):
            env[other] = constant
        for one in chain:
            _programs.run(one, env)
        return env[chain[-1].outvars[0]]

    end = eqn.outvars[0].aval
    output = jax.ShapeDtypeStruct(end.shape, end.dtype)
    return Cut(leaf, apply, _programs.read(other, known), output, kind), chain


def _is_view(eqn: Any) -> bool:
    if eqn.primitive.name not in _VIEWS or len(eqn.invars) != 1:
        return False
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    return before.size == after.size and jnp.issubdtype(after.dtype, jnp.floating)
