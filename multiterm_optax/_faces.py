r"""Many non-negative quadratic programs that share one matrix, by products with it.

.. math::

  \min_{z \ge 0} \tfrac12 z^T C z - q \cdot z

for many q at once. Once it is known which elements of z are not zero (the face), a
linear system in them remains. Conjugate gradients solve it with one product with C per
iteration, which all problems share as a product of two matrices. The face is guessed,
and exchanged as soon as the system's residual is small compared with the errors of the
guess: elements of z below zero leave, and elements whose slack is below zero enter.
Most gramians need some 3 to 10 faces, and 20 to 100 iterations in all.

Only what is verified is promised: ``solved`` marks the problems whose optimality
conditions hold to two roundings, with the residual evaluated in more than the working
precision. On ill-conditioned gramians, and on few others, faces may repeat for ever and
conjugate gradients may stall. Such problems are left to a method that always ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from multiterm_optax._typing import Gramian

# A face is given up once its residual is this small compared with its errors.
_EXCHANGE = 0.2

# For this many faces, everything that is wrong with them is exchanged at once.
_WHOLE = 10

# Once no more than one problem in so many is left, these go on by themselves, unless
# they are fewer than the least number.
_FEWER, _LEAST = 3, 16

# Iterations, in K. More would cost more than solving the problems one by one.
_MAX_ITERATIONS = 5

# Residuals are corrected at most this often.
_MAX_ROUNDS = 3


class Found(NamedTuple):
    """Points, and which of them meet the optimality conditions to two roundings."""

    z: Float[Array, "N K"]
    solved: Bool[Array, " N"]
    iterations: Int[Array, " N"]


class _Search(NamedTuple):
    """The iteration of N problems.

    Attributes:
      z: The points, zero outside of the face.
      residual: ``q - z @ c``, by recurrence.
      along: The direction of conjugate gradients.
      length: The squared length of the residual on the face.
      face: Which elements of z are free.
      fresh: Whether the face was exchanged, so that the residual has to be evaluated.
      done: Whether the face is optimal, by the residual of the recurrence.
      faces: Exchanges of the face so far.
      iterations: Products with the matrix so far.
    """

    z: Float[Array, "N K"]
    residual: Float[Array, "N K"]
    along: Float[Array, "N K"]
    length: Float[Array, " N"]
    face: Bool[Array, "N K"]
    fresh: Bool[Array, " N"]
    done: Bool[Array, " N"]
    faces: Int[Array, " N"]
    iterations: Int[Array, " N"]


class _Rounds(NamedTuple):
    """Searches, each starting from the accurate residual at the end of the last."""

    search: _Search
    solved: Bool[Array, " N"]
    number: Int[Array, ""]


def solve_each(c: Gramian, q: Float[Array, "N K"]) -> Found:
    """Minimises ``z @ c @ z / 2 - q @ z`` over ``z >= 0`` for each row of q.

    ``c`` is of unit scale, with no element above 1. Rows of z that are not solved are
    only guaranteed not to be negative.
    """
    eps = float(jnp.finfo(c.dtype).eps)
    budget = _MAX_ITERATIONS * len(c)

    def going(s: _Search) -> Bool[Array, " N"]:
        return ~s.done & (s.iterations < budget)

    def search(s: _Search, q: Float[Array, "N K"]) -> _Search:
        fewer = len(q) // _FEWER if len(q) >= _FEWER * _LEAST else 0
        s = jax.lax.while_loop(
            lambda s: jnp.sum(going(s)) > fewer,
            lambda s: _where(going(s), _improved(s, c, q, eps / 2), s),
            s,
        )
        if not fewer:
            return s
        # The last take up to twice as many iterations as most.
        rows = jnp.argsort(~going(s))[:fewer]
        end = search(jax.tree.map(lambda x: x[rows], s), q[rows])
        return jax.tree.map(lambda x, new: x.at[rows].set(new), s, end)

    def again(rounds: _Rounds) -> _Rounds:
        end = search(rounds.search, q)
        z = jnp.maximum(jnp.where(end.face, end.z, 0), 0)
        residual = _residual(c, z, q)
        wrong = jnp.where(end.face, jnp.abs(residual), jnp.maximum(residual, 0))
        solved = jnp.max(wrong, axis=1) <= 2 * eps * _size(z)
        start = _start(z, residual, end.face, end.iterations)
        return _Rounds(start._replace(done=solved), solved, rounds.number + 1)

    def unfinished(rounds: _Rounds) -> Bool[Array, ""]:
        return jnp.any(going(rounds.search)) & (rounds.number < _MAX_ROUNDS)

    # Made from the problem: inside shard_map the counts then differ by device, too.
    none = jnp.zeros_like(q[:, 0], jnp.int32)
    start = _start(jnp.zeros_like(q), q, q > 0, none)
    # No conflict: zero is the optimum.
    solved = jnp.all(q <= 0, axis=1)
    rounds = _Rounds(start._replace(done=solved), solved, none[0])
    end = jax.lax.while_loop(unfinished, again, rounds)
    return Found(end.search.z, end.solved, end.search.iterations)


def _start(z: Array, residual: Array, face: Array, iterations: Array) -> _Search:
    along = jnp.where(face, residual, 0)
    length = jnp.sum(along * along, axis=1)
    no = length < 0
    return _Search(
        z=z,
        residual=residual,
        along=along,
        length=length,
        face=face,
        fresh=no,
        done=no,
        faces=jnp.zeros_like(iterations),
        iterations=iterations,
    )


def _improved(s: _Search, c: Gramian, q: Array, enough: float) -> _Search:
    """One product with the matrix: a step on the face, or the residual of a new one."""
    fresh = s.fresh[:, None]
    vector = jnp.where(fresh, s.z, s.along)
    product = jnp.matmul(vector, c, precision="highest")
    # Along a direction without curvature, up to rounding, there is nothing to gain.
    curvature = jnp.sum(vector * product, axis=1)
    roundings = jnp.finfo(c.dtype).eps * jnp.sum(vector * vector, axis=1)
    step = jnp.where(s.fresh, 0, _ratio(s.length, curvature, roundings))
    z = s.z + step[:, None] * s.along
    residual = jnp.where(fresh, q - product, s.residual - step[:, None] * product)
    inside = jnp.where(s.face, residual, 0)
    length = jnp.sum(inside * inside, axis=1)
    kept = jnp.where(s.fresh, 0, _ratio(length, s.length, 0.0))
    along = inside + kept[:, None] * s.along

    left = jnp.max(jnp.abs(inside), axis=1)
    each = jnp.where(s.face, -z, residual)
    wrong = jnp.max(each, axis=1)
    small = enough * _size(z)
    exchanged = (left <= _EXCHANGE * wrong) & (wrong > small)
    # After many faces only the worst element is exchanged: whole exchanges can cycle.
    least = jnp.where(s.faces < _WHOLE, 0, wrong / 2)
    face = s.face ^ (exchanged[:, None] & (each > least[:, None]))
    z = jnp.where(exchanged[:, None] & ~face, 0, z)
    done = (left <= small) & (wrong <= small)
    return _Search(
        z=z,
        residual=residual,
        along=along,
        length=length,
        face=face,
        fresh=exchanged,
        done=done,
        faces=s.faces + exchanged,
        iterations=s.iterations + 1,
    )


def _size(z: Array) -> Float[Array, " N"]:
    return 1 + jnp.sum(jnp.abs(z), axis=1)


def _ratio(part: Array, whole: Array, smallest: Array | float) -> Array:
    """``part / whole``, and zero where the divisor is not above the smallest."""
    usable = whole > smallest
    return jnp.where(usable, part / jnp.where(usable, whole, 1), 0)


def _where(rows: Bool[Array, " N"], new: _Search, old: _Search) -> _Search:
    def choose(a: Array, b: Array) -> Array:
        return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def _residual(c: Gramian, z: Float[Array, "N K"], q: Array) -> Float[Array, "N K"]:
    """``q - z @ c``, with an error far below a rounding of the sum of z.

    The leading digits of z and c are few enough for their products to be summed without
    a rounding. The rest is small, and so are its roundings.
    """
    digits = jnp.finfo(c.dtype).nmant + 1
    grid = 2.0 ** ((digits - (len(c) - 1).bit_length()) // 2)
    largest = jnp.max(z, axis=1, keepdims=True)
    unit = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1])
    leading_c = jnp.round(c * grid) / grid
    leading_z = jnp.round(z / unit * grid) / grid * unit

    def dot(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision="highest")

    leading = dot(leading_z, leading_c)
    rest = dot(z - leading_z, leading_c) + dot(z, c - leading_c)
    # What this difference loses (Knuth).
    found = q - leading
    back = found - q
    lost = (q - (found - back)) - (leading + back)
    return found + (lost - rest)
