"""Finds a root of a function of one number between two points of opposite sign."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_MAX_EVALUATIONS = 60


class Root(NamedTuple):
    """The result of a search.

    Attributes:
      aux: What the function returned along with its value nearest to zero.
      bracketed: Whether the values at the ends have opposite signs.
    """

    aux: jax.Array
    bracketed: jax.Array


class _Point(NamedTuple):
    x: jax.Array
    f: jax.Array
    aux: jax.Array


class _Bracket(NamedTuple):
    newest: _Point
    opposite: _Point
    before: _Point
    evaluations: jax.Array


def search(
    f: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    low: jax.Array,
    f_low: jax.Array,
    aux_low: jax.Array,
    high: jax.Array,
) -> Root:
    """Finds ``f(x)[0] == 0`` to the resolution of x or of f (Chandrupatla, 1997).

    The ends may lie many orders of magnitude apart.
    """
    eps = jnp.finfo(low.dtype).eps

    def tolerance(it: _Bracket) -> jax.Array:
        largest = jnp.maximum(jnp.abs(it.newest.x), jnp.abs(it.opposite.x))
        return 2 * eps * largest

    def body(it: _Bracket) -> _Bracket:
        x = jnp.where(it.evaluations == 0, high, _next(it, tolerance(it)))
        newest = _Point(x, *f(x))
        same = (newest.f < 0) == (it.newest.f < 0)

        def choose(one: Any, other: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(same, a, b), one, other)

        return _Bracket(
            newest,
            opposite=choose(it.opposite, it.newest),
            before=choose(it.newest, it.opposite),
            evaluations=it.evaluations + 1,
        )

    def bracketed(it: _Bracket) -> jax.Array:
        return (it.newest.f < 0) != (it.opposite.f < 0)

    def unfinished(it: _Bracket) -> jax.Array:
        return (it.evaluations == 0) | (
            bracketed(it)
            & (jnp.abs(it.newest.f) > 2 * eps)
            & (jnp.abs(it.newest.x - it.opposite.x) > 2 * tolerance(it))
            & (it.evaluations < _MAX_EVALUATIONS)
        )

    first = _Point(low, f_low, aux_low)
    start = _Bracket(first, first, first, jnp.zeros([], jnp.int32))
    end = jax.lax.while_loop(unfinished, body, start)
    nearer = jnp.abs(end.newest.f) <= jnp.abs(end.opposite.f)
    aux = jnp.where(nearer, end.newest.aux, end.opposite.aux)
    return Root(aux, bracketed(end))


def _next(it: _Bracket, tolerance: jax.Array) -> jax.Array:
    """Inverse quadratic interpolation where it can be trusted, else bisection.

    Bisection is in arcsinh(x), since the ends may lie many orders of magnitude apart.
    """
    x, f = it.newest.x, it.newest.f
    g, h = it.opposite.f, it.before.f
    # Where two of the three points are one, as in the first step, there is nothing to
    # interpolate, and nothing is divided by zero.
    width, span = it.opposite.x - x, it.before.x - it.opposite.x
    divisors = jnp.stack([width, span, g - f, h - g, h - f])
    apart = jnp.all(divisors != 0)
    width, span, g_f, h_g, h_f = jnp.where(apart, divisors, 1)
    xi = (x - it.opposite.x) / span
    phi = (f - g) / h_g
    trusted = apart & (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    to_before = (it.before.x - x) / width
    step = -f / g_f * h / h_g + to_before * f / h_f * g / h_g
    least = tolerance / jnp.abs(width)
    inside = x + jnp.clip(step, least, 1 - least) * width
    halfway = jnp.sinh((jnp.arcsinh(x) + jnp.arcsinh(it.opposite.x)) / 2)
    return jnp.where(trusted & jnp.isfinite(step), inside, halfway)
