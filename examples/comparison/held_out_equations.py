"""Differential equations on which nothing of the library was chosen.

A network is trained on the mean squares of the equation's residual and of the errors
at the boundary and at the initial time; a point is (x, t), or (x, y) where nothing
moves. Points are drawn anew for each step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from allen_cahn import solve
from problem import Problem, borrowed, equation

PI = np.pi


class Equation(NamedTuple):
    """What ``equation`` asks of its source."""

    terms: tuple[str, ...]
    init_params: Callable[..., Any]
    sample: Callable[[jax.Array], dict[str, jax.Array]]
    losses_fn: Callable[[Any, dict[str, jax.Array]], jax.Array]
    predict: Callable[[Any, jax.Array], jax.Array]
    grid: np.ndarray  # [N, 2]
    solution: np.ndarray  # what ``predict`` should give there


def init_params(key, width, inputs=2, outputs=1):
    """Three hidden layers, Glorot's start."""
    sizes = (inputs, width, width, width, outputs)
    keys = jax.random.split(key, len(sizes) - 1)
    normal = jax.nn.initializers.glorot_normal()
    return [
        {"w": normal(key, (rows, columns)), "b": jnp.zeros(columns)}
        for key, rows, columns in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def network(params, points):
    """The outputs at the points, [outputs, N]."""
    *hidden, last = params
    for layer in hidden:
        points = jnp.tanh(points @ layer["w"] + layer["b"])
    return (points @ last["w"] + last["b"]).T


def derivatives(params, points, inputs=None):
    """Values [outputs, N], first and second derivatives [outputs, 2, N].

    The chain rule, forward through the layers, as in the reproductions. ``inputs`` are
    the network's inputs with their own derivatives, if they are not the points.
    """
    *hidden, last = params
    u, first, second = inputs or (points, jnp.eye(2)[:, None], jnp.zeros((2, 1, 2)))
    for layer in hidden:
        first, second = first @ layer["w"], second @ layer["w"]
        u = jnp.tanh(u @ layer["w"] + layer["b"])
        slope = 1 - u**2
        second = slope * (second - 2 * u * first**2)
        first = slope * first
    u = u @ last["w"] + last["b"]
    first, second = first @ last["w"], second @ last["w"]
    return u.T, first.transpose(2, 0, 1), second.transpose(2, 0, 1)


def in_time(key, points, side_points):
    """Points of the unit square: inside, at the two ends of x, at the first moment."""
    one, two, three = jax.random.split(key, 3)
    ends = jax.random.uniform(two, (side_points, 2))
    first = jax.random.uniform(three, (side_points, 2))
    return {
        "residual": jax.random.uniform(one, (points, 2)),
        "boundary": ends.at[:, 0].set(jnp.arange(side_points) % 2),
        "initial": first.at[:, 1].set(0.0),
    }


def at_lattice(axes, true):
    """Points [N, 2] of a lattice and the true solution there."""
    grid = borrowed("pde").lattice(*axes)
    return grid.astype(np.float32), true(*grid.T).astype(np.float32)


def square(values):
    return jnp.mean(values**2)


# --- second order in time -----------------------------------------------------------


def second_order(residual, true, first_value, points, side_points):
    """Of an equation for u_tt on the unit square that starts at rest."""

    def losses_fn(params, at):
        (u,), _, ((u_xx, u_tt),) = derivatives(params, at["residual"])
        x, t = at["residual"].T
        ends = network(params, at["boundary"])[0] - true(jnp, *at["boundary"].T)
        (start,), ((_, speed),), _ = derivatives(params, at["initial"])
        return jnp.stack(
            [
                square(residual(x, t, u, u_xx, u_tt)),
                square(ends),
                square(start - first_value(at["initial"][:, 0])),
                square(speed),
            ]
        )

    axis = np.linspace(0, 1, 51)
    return Equation(
        ("residual", "boundary", "initial value", "initial velocity"),
        init_params,
        lambda key: in_time(key, points, side_points),
        losses_fn,
        lambda params, at: network(params, at)[0],
        *at_lattice((axis, axis), partial(true, np)),
    )


def klein_gordon(short: bool) -> Problem:
    """Klein and Gordon's equation u_tt - u_xx + u^3 = f, u = x cos(5 pi t) + (x t)^3.

    Terms: residual, boundary, initial value, initial velocity. The benchmark of Wang,
    Teng and Perdikaris (2021), on the unit square.
    """

    def true(xp, x, t):
        return x * xp.cos(5 * PI * t) + (x * t) ** 3

    def residual(x, t, u, u_xx, u_tt):
        true_tt = -((5 * PI) ** 2) * x * jnp.cos(5 * PI * t) + 6 * x**3 * t
        force = true_tt - 6 * x * t**3 + true(jnp, x, t) ** 3
        return u_tt - u_xx + u**3 - force

    make = partial(second_order, residual, true, lambda x: x, 64, 32)
    return equation(make, "Klein–Gordon", 20 if short else 4000, width=40)


def wave(short: bool) -> Problem:
    """The wave equation u_tt = 4 u_xx, with two standing waves of different pitch.

    u = sin(pi x) cos(2 pi t) + sin(4 pi x) cos(8 pi t) / 2. Terms: residual, boundary,
    initial value, initial velocity. From Wang, Yu and Perdikaris (2022), "When and why
    PINNs fail to train".
    """

    def true(xp, x, t):
        slow = xp.sin(PI * x) * xp.cos(2 * PI * t)
        return slow + xp.sin(4 * PI * x) * xp.cos(8 * PI * t) / 2

    def residual(x, t, u, u_xx, u_tt):
        return u_tt - 4 * u_xx

    make = partial(second_order, residual, true, lambda x: true(jnp, x, 0.0), 64, 32)
    return equation(make, "Wave", 20 if short else 4000)


# --- others -------------------------------------------------------------------------


def allen_cahn(short: bool) -> Problem:
    """Allen and Cahn's equation u_t = 1e-4 u_xx - 5 u^3 + 5 u, u(x, 0) = x^2 cos(pi x).

    Terms: residual and initial value; sines and cosines as inputs make the network
    periodic in x. Raissi's problem; the solution compared with is computed here.
    """
    return equation(_allen_cahn, "Allen–Cahn", 20 if short else 3000)


def _allen_cahn(points=64, initial_points=32):
    waves = PI * np.arange(1, 4)

    def inputs(at):
        """The time and three sines and cosines of x, with derivatives by x and t."""
        angles = at[:, :1] * waves
        sine, cosine = jnp.sin(angles), jnp.cos(angles)
        t, zero, one = at[:, 1:], jnp.zeros_like(at[:, 1:]), jnp.ones_like(at[:, 1:])
        flat = jnp.zeros_like(angles)
        value = jnp.concatenate([t, sine, cosine], axis=1)
        by_x = jnp.concatenate([zero, waves * cosine, -waves * sine], axis=1)
        by_t = jnp.concatenate([one, flat, flat], axis=1)
        twice_x = jnp.concatenate([zero, -(waves**2) * sine, -(waves**2) * cosine], 1)
        return value, jnp.stack([by_x, by_t]), jnp.stack([twice_x, 0 * twice_x])

    def predict(params, at):
        return network(params, inputs(at)[0])[0]

    def sample(key):
        one, two = jax.random.split(key)
        low, high = jnp.array([-1.0, 0.0]), jnp.array([1.0, 1.0])
        start = jax.random.uniform(two, (initial_points, 2), minval=low, maxval=high)
        return {
            "residual": jax.random.uniform(one, (points, 2), minval=low, maxval=high),
            "initial": start.at[:, 1].set(0.0),
        }

    def losses_fn(params, at):
        inside = inputs(at["residual"])
        (u,), ((_, u_t),), ((u_xx, _),) = derivatives(params, None, inside)
        x = at["initial"][:, 0]
        start = predict(params, at["initial"]) - x**2 * jnp.cos(PI * x)
        return jnp.stack([square(u_t - 1e-4 * u_xx + 5 * u**3 - 5 * u), square(start)])

    x, t, u = solve()
    x, t, u = x[::4], t[::2], u[::4, ::2]
    return Equation(
        ("residual", "initial value"),
        partial(init_params, inputs=1 + 2 * len(waves)),
        sample,
        losses_fn,
        predict,
        *at_lattice((x, t), lambda *_: u.ravel()),
    )


def kovasznay(short: bool) -> Problem:
    """Kovasznay's flow behind a grid: steady Navier-Stokes at Re = 40.

    Terms: momentum along x, along y, continuity, and the velocity at the boundary; the
    score is that of the velocity. Kovasznay (1948) gives the solution.
    """
    return equation(_kovasznay, "Kovasznay flow", 20 if short else 3000)


def _kovasznay(points=64, boundary_points=32, reynolds=40.0):
    decay = reynolds / 2 - np.sqrt(reynolds**2 / 4 + 4 * PI**2)
    corner, size = np.array([-0.5, -0.5]), np.array([1.5, 2.0])

    def true(xp, x, y):
        u = 1 - xp.exp(decay * x) * xp.cos(2 * PI * y)
        v = decay / (2 * PI) * xp.exp(decay * x) * xp.sin(2 * PI * y)
        return xp.stack([u, v])

    def sample(key):
        one, two = jax.random.split(key)
        edges = borrowed("pde").edges(two, boundary_points, 0.0, 1.0)
        return {
            "residual": corner + size * jax.random.uniform(one, (points, 2)),
            "boundary": corner + size * edges,
        }

    def losses_fn(params, at):
        (u, v, _), first, second = derivatives(params, at["residual"])
        (u_x, u_y), (v_x, v_y), (p_x, p_y) = first
        (u_xx, u_yy), (v_xx, v_yy), _ = second
        edge = network(params, at["boundary"])[:2] - true(jnp, *at["boundary"].T)
        return jnp.stack(
            [
                square(u * u_x + v * u_y + p_x - (u_xx + u_yy) / reynolds),
                square(u * v_x + v * v_y + p_y - (v_xx + v_yy) / reynolds),
                square(u_x + v_y),
                square(edge),
            ]
        )

    axes = (np.linspace(-0.5, 1, 46), np.linspace(-0.5, 1.5, 61))
    grid, solution = at_lattice(axes, partial(true, np))
    return Equation(
        ("momentum x", "momentum y", "continuity", "boundary"),
        partial(init_params, outputs=3),
        sample,
        losses_fn,
        lambda params, at: network(params, at)[:2].T,
        grid,
        solution.T,
    )


def helmholtz(short: bool) -> Problem:
    """Helmholtz's equation on [-1, 1]^2: residual and boundary.

    The benchmark of Wang, Teng and Perdikaris (2021), as in the reproductions.
    """
    make = partial(borrowed("pde").helmholtz, points=64, boundary_points=32)
    return equation(make, "Helmholtz", 20 if short else 4000, width=40)
