# Longer than most: three operations are recognised, each in all its layouts.
"""Where parameters enter the linear program of the losses, and what is left of it.

The losses' tangents are a linear program of the parameters' tangents. A dense layer's
matrix t enters it in one operation, ``y = x t`` with a constant x. With y as an input
in place of t, the transposed program gives the losses' derivatives with respect to y,
and no product with x is taken; ``_cut_products`` makes the gramian of them and x.
Convolutions and rows of tables are cut in the same way. Transposes, reshapes and
changes of dtype may stand before the operation. A parameter that is used twice, or in
another way (also within a loop, ``jax.checkpoint`` or a function with
``jax.custom_vjp``), stays an input.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

# Operations that move a parameter's elements without changing or repeating any.
_VIEWS = ("transpose", "reshape", "squeeze", "expand_dims", "copy", "broadcast_in_dim")
_CASTS = ("convert_element_type",)
_CALLS = ("jit", "pjit", "closed_call", "core_call")

# A convolution with more offsets than that would make a long program.
_MAX_OFFSETS = 49


class Cut(NamedTuple):
    """The only operation that a parameter enters.

    As a matrix of R rows, its output is X t: for each of b independent products X is
    [R, n], t is [n, m], and the cotangents are [R, m]. In a table X is the one-hot code
    of the entries read.

    Attributes:
      leaf: The position of the parameter among the leaves.
      apply: ``(constant, parameter) -> output``, linear in the parameter.
      constant: The operation's other operand.
      output: Shape and dtype of the operation's output.
      parts: From the constant to X, as parts [b, R, n_i] of its columns; for a table,
        to the entries read, [R], or -1 for none.
      rows_of: From the cotangents of the output to [b, R, m].
      sizes: b, R, n and m.
      table: Whether it reads rows of a table.
    """

    leaf: int
    apply: Callable[[Any, Any], Any]
    constant: Any
    output: jax.ShapeDtypeStruct
    parts: Callable[[Any], Any]
    rows_of: Callable[[Array], Array]
    sizes: tuple[int, int, int, int]
    table: bool = False


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
    worth: Callable[[Cut], bool],
    include: list[bool] | None = None,
) -> Program:
    """Cuts ``linear`` wherever that is possible and ``worth`` it.

    ``include`` says which leaves of ``primals`` may be cut; None: all of them.
    """
    leaves, structure = jax.tree.flatten(primals)
    shapes = jax.eval_shape(linear, *primals)
    outer = jax.make_jaxpr(lambda *flat: linear(*structure.unflatten(flat)))(*leaves)
    closed = jax.make_jaxpr(lambda *flat: _inlined(outer, flat))(*leaves)
    jaxpr = closed.jaxpr
    uncut = Program(
        lambda *flat: linear(*structure.unflatten(flat)),
        tuple(leaves),
        list(range(len(leaves))),
        [],
    )
    if jaxpr.effects or any(map(_is_placed, (*jaxpr.constvars, *jaxpr.invars))):
        return uncut
    known, equations = _known(closed)
    uses = defaultdict(list)
    for eqn in equations:
        for var in eqn.invars:
            if not isinstance(var, core.Literal):
                uses[var].append(eqn)
    for var in jaxpr.outvars:
        if not isinstance(var, core.Literal):
            uses[var].append(None)

    cuts, ends, gone = [], [], set()
    for leaf, var in enumerate(jaxpr.invars):
        found = None
        if include is None or include[leaf]:
            found = _cut(leaf, var, uses, known)
        if found is not None and worth(found[0]):
            cuts.append(found[0])
            ends.append(found[1][-1].outvars[0])
            gone.update(map(id, found[1]))
    if not cuts:
        return uncut
    cut = {one.leaf for one in cuts}
    kept = [leaf for leaf in range(len(leaves)) if leaf not in cut]
    inputs = [jaxpr.invars[leaf] for leaf in kept] + ends
    outputs = jax.tree.structure(shapes)
    remaining = [eqn for eqn in equations if id(eqn) not in gone]

    def rest(*tangents: Any) -> Any:
        env = dict(zip(inputs, tangents, strict=True))
        for eqn in remaining:
            _run(eqn, env, known)
        return outputs.unflatten([_read(var, env, known) for var in jaxpr.outvars])

    given = tuple(leaves[leaf] for leaf in kept)
    return Program(rest, (*given, *(one.output for one in cuts)), kept, cuts)


def _inlined(closed: Any, args: Any) -> list[Any]:
    """Runs a program with the calls in it opened, so that one sees their operations."""
    jaxpr, env = closed.jaxpr, {}
    env.update(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _CALLS and _is_plain(eqn):
            inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
            values = [_read(var, env) for var in eqn.invars]
            env.update(zip(eqn.outvars, _inlined(inner, values), strict=True))
        else:
            _run(eqn, env)
    return [_read(var, env) for var in jaxpr.outvars]


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
        if all(_has(var, known) for var in eqn.invars):
            _run(eqn, known)
        else:
            left.append(eqn)
    return known, left


def _read(var: Any, *environments: dict[Any, Any]) -> Any:
    if isinstance(var, core.Literal):
        return var.val
    return next(env[var] for env in environments if var in env)


def _has(var: Any, env: dict[Any, Any]) -> bool:
    return isinstance(var, core.Literal) or var in env


def _run(eqn: Any, env: dict[Any, Any], *others: dict[Any, Any]) -> None:
    values = [_read(var, env, *others) for var in eqn.invars]
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        found = eqn.primitive.bind(*values, **params)
    found = found if eqn.primitive.multiple_results else [found]
    env.update(zip(eqn.outvars, found, strict=True))


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
    kind = _KINDS.get(eqn.primitive.name)
    described = kind and kind(eqn, eqn.invars.index(var))
    if not described:
        return None
    other, parts, rows_of, sizes = described
    if not _has(other, known):
        return None

    def apply(constant: Any, parameter: Any) -> Any:
        env = {start: parameter}
        if not isinstance(other, core.Literal):
            env[other] = constant
        for one in chain:
            _run(one, env)
        return env[chain[-1].outvars[0]]

    end = eqn.outvars[0].aval
    output = jax.ShapeDtypeStruct(end.shape, end.dtype)
    table = eqn.primitive.name == "gather"
    constant = _read(other, known)
    return Cut(leaf, apply, constant, output, parts, rows_of, sizes, table), chain


def _is_view(eqn: Any) -> bool:
    name = eqn.primitive.name
    if name not in _VIEWS + _CASTS or len(eqn.invars) != 1:
        return False
    (before,), (after,) = eqn.invars, eqn.outvars
    return before.aval.size == after.aval.size and jnp.issubdtype(
        after.aval.dtype, jnp.floating
    )


def _dense(eqn: Any, position: int) -> Any:
    other, shape = eqn.invars[1 - position], eqn.invars[1 - position].aval.shape
    contracted, batched = eqn.params["dimension_numbers"]
    contracted, batched = contracted[1 - position], batched[1 - position]
    free = [i for i in range(len(shape)) if i not in (*contracted, *batched)]
    b, rows, width = (
        math.prod(shape[i] for i in axes) for axes in (batched, free, contracted)
    )
    columns = eqn.outvars[0].aval.size // max(b * rows, 1)

    def parts(constant: Array) -> list[Array]:
        moved = jnp.transpose(constant, (*batched, *free, *contracted))
        return [moved.reshape(b, rows, width)]

    def rows_of(cotangents: Array) -> Array:
        if position == 1:
            return cotangents.reshape(b, rows, columns)
        return cotangents.reshape(b, columns, rows).swapaxes(1, 2)

    return other, parts, rows_of, (b, rows, width, columns)


def _convolution(eqn: Any, position: int) -> Any:
    params, other = eqn.params, eqn.invars[1 - position]
    if position != 1 or params["feature_group_count"] * params["batch_group_count"] > 1:
        return None
    numbers = params["dimension_numbers"]
    image = [other.aval.shape[i] for i in numbers.lhs_spec]
    kernel = [eqn.invars[1].aval.shape[i] for i in numbers.rhs_spec]
    output = [eqn.outvars[0].aval.shape[i] for i in numbers.out_spec]
    if math.prod(kernel[2:]) > _MAX_OFFSETS:
        return None
    rows = output[0] * math.prod(output[2:])
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    borders = [
        (low, high, inner - 1)
        for (low, high), inner in zip(
            params["padding"], params["lhs_dilation"], strict=True
        )
    ]

    def parts(constant: Array) -> list[Array]:
        moved = jnp.transpose(constant, numbers.lhs_spec)
        zero = jnp.zeros([], moved.dtype)
        padded = jax.lax.pad(moved, zero, [(0, 0, 0), (0, 0, 0), *borders])
        found = []
        for offset in itertools.product(*map(range, kernel[2:])):
            first = [i * step for i, step in zip(offset, dilation, strict=True)]
            last = [
                start + (size - 1) * stride + 1
                for start, size, stride in zip(first, output[2:], strides, strict=True)
            ]
            seen = jax.lax.slice(
                padded, (0, 0, *first), (*image[:2], *last), (1, 1, *strides)
            )
            found.append(jnp.moveaxis(seen, 1, -1).reshape(1, rows, image[1]))
        return found

    def rows_of(cotangents: Array) -> Array:
        moved = jnp.transpose(cotangents, numbers.out_spec)
        return jnp.moveaxis(moved, 1, -1).reshape(1, rows, output[1])

    width = image[1] * math.prod(kernel[2:])
    return other, parts, rows_of, (1, rows, width, output[1])


def _table(eqn: Any, position: int) -> Any:
    table, other = eqn.invars
    numbers, shape = eqn.params["dimension_numbers"], table.aval.shape
    whole_rows = (
        position == 0
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and not numbers.operand_batching_dims
        and tuple(eqn.params["slice_sizes"]) == (1, *shape[1:])
    )
    if not whole_rows:
        return None
    columns = math.prod(shape[1:])
    rows = eqn.outvars[0].aval.size // max(columns, 1)

    def parts(constant: Array) -> Array:
        # The same reading, of a column that numbers the rows.
        one_column = jax.lax.GatherDimensionNumbers((), (0,), (0,))
        entries = jax.lax.gather(
            jnp.arange(shape[0]),
            constant,
            one_column,
            slice_sizes=(1,),
            mode=eqn.params["mode"],
            fill_value=-1,
        )
        return entries.reshape(rows)

    def rows_of(cotangents: Array) -> Array:
        ends = range(cotangents.ndim - len(numbers.offset_dims), cotangents.ndim)
        moved = jnp.moveaxis(cotangents, numbers.offset_dims, tuple(ends))
        return moved.reshape(1, rows, columns)

    return other, parts, rows_of, (1, rows, shape[0], columns)


_KINDS: dict[str, Callable[[Any, int], Any]] = {
    "dot_general": _dense,
    "conv_general_dilated": _convolution,
    "gather": _table,
}
