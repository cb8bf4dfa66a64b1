"""The operations with a parameter at which a linear program can be cut.

Each is a matrix product of R rows: the output is X t, with the constant X [R, n] and
the parameter t [n, m], b times over, whatever the layout of the operation.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

# A convolution with more offsets than this would make a long program.
_MAX_OFFSETS = 49


class Kind(NamedTuple):
    """One operation as a matrix product.

    Attributes:
      other: The variable of the constant operand.
      parts: From the constant to X, as parts [b, R, n_i] of its columns; for a table,
        to the indices of the rows read, [R], or -1 for none.
      rows_of: From the cotangents of the output to [b, R, m].
      sizes: b, R, n and m.
      table: Whether rows of a table are read, so that X is their one-hot code.
    """

    other: Any
    parts: Callable[[Any], Any]
    rows_of: Callable[[Array], Array]
    sizes: tuple[int, int, int, int]
    table: bool = False


def _dense(eqn: Any, position: int) -> Kind | None:
    """A matrix product, with the parameter on either side."""
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

    return Kind(other, parts, rows_of, (b, rows, width, columns))


def _convolution(eqn: Any, position: int) -> Kind | None:
    """A convolution: one part of X for each offset of the kernel."""
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
    return Kind(other, parts, rows_of, (1, rows, width, output[1]))


def _table(eqn: Any, position: int) -> Kind | None:
    """Whole rows of a table, read by their indices."""
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

    return Kind(other, parts, rows_of, (1, rows, shape[0], columns), table=True)


KINDS: dict[str, Callable[[Any, int], Kind | None]] = {
    "dot_general": _dense,
    "conv_general_dilated": _convolution,
    "gather": _table,
}
