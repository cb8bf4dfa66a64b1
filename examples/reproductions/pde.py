"""Three differential equations as loss terms: Poisson, Helmholtz, Burgers.

A network u(x; params) is trained on the mean squares of the equation's residual at
interior points, and of the error at points of the boundary (and of the initial time,
for Burgers). Points are drawn anew for each step. The solutions are known:

  Poisson     -u_xx - u_yy = f on the unit square, u = sin(pi x) sin(pi y), zero on
              the edges; the residual's loss is multiplied by 1000, as if it were in
              another unit.
  Helmholtz   u_xx + u_yy + u = q on [-1, 1]^2, u = sin(pi x) sin(4 pi y), zero on the
              edges: the benchmark of Wang, Teng and Perdikaris (2021).
  Burgers     u_t + u u_x = nu u_xx with nu = 0.01 / pi, u(x, 0) = -sin(pi x), zero at
              x = -1 and 1, until t = 1: Raissi's problem, with a shock at x = 0. Its
              solution is computed here, by Cole and Hopf's transform.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PI = np.pi
NU = 0.01 / PI


class Problem(NamedTuple):
    """What an optimizer needs to know of a problem, and what a judge does.

    Attributes:
      name: The equation's name.
      terms: Names of the K terms.
      init_params: A key to the network's parameters.
      sample: A key to the points of one step, a dict of arrays [N, 2].
      losses_fn: Parameters and points to the losses [K].
      relative_l2: Parameters to ||u - true|| / ||true|| on ``grid``.
      predict: Parameters and points [N, 2] to u [N].
      grid: Points [N, 2] at which the solution is compared, in lines of ``shape``.
      solution: The true u there, [N].
      shape: The grid's lines and columns.
    """

    name: str
    terms: tuple[str, ...]
    init_params: Callable[[jax.Array], Any]
    sample: Callable[[jax.Array], dict[str, jax.Array]]
    losses_fn: Callable[[Any, dict[str, jax.Array]], jax.Array]
    relative_l2: Callable[[Any], jax.Array]
    predict: Callable[[Any, jax.Array], jax.Array]
    grid: np.ndarray
    solution: np.ndarray
    shape: tuple[int, int]


# --- network -----------------------------------------------------------------------


def init_params(key, width=32, depth=3):
    """A network of ``depth`` hidden layers: 2 inputs, 1 output, Glorot's start."""
    sizes = [2] + [width] * depth + [1]
    keys = jax.random.split(key, depth + 1)
    normal = jax.nn.initializers.glorot_normal()
    return [
        {"w": normal(key, (rows, columns)), "b": jnp.zeros(columns)}
        for key, rows, columns in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def network(params, points):
    """The solution's estimate u at the points [N, 2], [N]."""
    *hidden, last = params
    for layer in hidden:
        points = jnp.tanh(points @ layer["w"] + layer["b"])
    return (points @ last["w"] + last["b"])[:, 0]


def derivatives(params, points):
    """Value u [N], first and second derivatives by each coordinate, [2, N] both.

    The chain rule, forward through the layers. ``jax.hessian`` gives the same more
    slowly: it finds the mixed derivative, too, and multiplies smaller matrices.
    """
    *hidden, last = params
    u, first, second = points, jnp.eye(2)[:, None], jnp.zeros((2, 1, 2))
    for layer in hidden:
        first, second = first @ layer["w"], second @ layer["w"]
        u = jnp.tanh(u @ layer["w"] + layer["b"])
        slope = 1 - u**2
        second = slope * (second - 2 * u * first**2)
        first = slope * first
    u = u @ last["w"] + last["b"]
    return u[:, 0], (first @ last["w"])[..., 0], (second @ last["w"])[..., 0]


# --- points ------------------------------------------------------------------------


def inside(key, count, low, high):
    """Uniform in the box."""
    return jax.random.uniform(key, (count, 2), minval=low, maxval=high)


def edges(key, count, low, high):
    """Uniform on the four edges of the square, as many on each."""
    along, fixed = inside(key, count, low, high), jnp.array([low, high])
    ends = fixed[jnp.arange(count) // 2 % 2]
    upright = jnp.arange(count)[:, None] % 2 == jnp.arange(2)
    return jnp.where(upright, ends[:, None], along)


def lattice(first, second):
    """All pairs of the coordinates, [N, 2]."""
    pairs = np.meshgrid(first, second, indexing="ij")
    return np.stack(pairs, axis=-1).reshape(-1, 2)


def square(values):
    return jnp.mean(values**2)


def problem(name, terms, sample, losses_fn, axes, solution):
    """The fields that the three share."""
    grid = lattice(*axes).astype(np.float32)
    true = np.asarray(solution, np.float32).ravel()

    def relative_l2(params):
        error = network(params, grid) - true
        return jnp.linalg.norm(error) / np.linalg.norm(true)

    shape = (len(axes[0]), len(axes[1]))
    return Problem(
        name,
        terms,
        init_params,
        sample,
        losses_fn,
        relative_l2,
        network,
        grid,
        true,
        shape,
    )


# --- the equations -----------------------------------------------------------------


def poisson(scale=1000.0, points=128, boundary_points=64):
    """Poisson's equation, its residual's loss multiplied by ``scale``."""

    def true(at):
        return np.sin(PI * at[..., 0]) * np.sin(PI * at[..., 1])

    def sample(key):
        one, two = jax.random.split(key)
        return {
            "residual": inside(one, points, 0.0, 1.0),
            "boundary": edges(two, boundary_points, 0.0, 1.0),
        }

    def losses_fn(params, points):
        x, y = points["residual"].T
        force = 2 * PI**2 * jnp.sin(PI * x) * jnp.sin(PI * y)
        _, _, (u_xx, u_yy) = derivatives(params, points["residual"])
        boundary = network(params, points["boundary"])
        return jnp.stack([scale * square(u_xx + u_yy + force), square(boundary)])

    axis = np.linspace(0, 1, 51)
    solution = true(lattice(axis, axis))
    terms = ("residual", "boundary")
    return problem("Poisson", terms, sample, losses_fn, (axis, axis), solution)


def helmholtz(points=128, boundary_points=64):
    """Helmholtz's equation with k = 1."""

    def sample(key):
        one, two = jax.random.split(key)
        return {
            "residual": inside(one, points, -1.0, 1.0),
            "boundary": edges(two, boundary_points, -1.0, 1.0),
        }

    def losses_fn(params, points):
        x, y = points["residual"].T
        true = jnp.sin(PI * x) * jnp.sin(4 * PI * y)
        force = (1 - PI**2 - (4 * PI) ** 2) * true
        u, _, (u_xx, u_yy) = derivatives(params, points["residual"])
        boundary = network(params, points["boundary"])
        return jnp.stack([square(u_xx + u_yy + u - force), square(boundary)])

    axis = np.linspace(-1, 1, 81)
    x, y = lattice(axis, axis).T
    solution = np.sin(PI * x) * np.sin(4 * PI * y)
    terms = ("residual", "boundary")
    return problem("Helmholtz", terms, sample, losses_fn, (axis, axis), solution)


def burgers(points=128, initial_points=64, boundary_points=32):
    """Burgers' equation; a point is (x, t)."""

    def sample(key):
        one, two, three = jax.random.split(key, 3)
        low, high = jnp.array([-1.0, 0.0]), jnp.array([1.0, 1.0])
        ends = inside(three, boundary_points, low, high)
        return {
            "residual": inside(one, points, low, high),
            "initial": inside(two, initial_points, low, high).at[:, 1].set(0.0),
            "boundary": ends.at[:, 0].set(2.0 * (jnp.arange(boundary_points) % 2) - 1),
        }

    def losses_fn(params, points):
        u, (u_x, u_t), (u_xx, _) = derivatives(params, points["residual"])
        initial = network(params, points["initial"])
        error = initial + jnp.sin(PI * points["initial"][:, 0])
        boundary = network(params, points["boundary"])
        return jnp.stack(
            [square(u_t + u * u_x - NU * u_xx), square(error), square(boundary)]
        )

    # As in Raissi's data, save that the first moment, which is given, is left out.
    x, t = np.linspace(-1, 1, 256), np.linspace(0.01, 0.99, 50)
    terms = ("residual", "initial", "boundary")
    solution = cole_hopf(x, t)
    return problem("Burgers", terms, sample, losses_fn, (x, t), solution)


def cole_hopf(x, t, nodes=2001):
    """Burgers' solution [len(x), len(t)] for t of 0.01 or more, by quadrature.

    u = -int sin(pi y) h(y) dy / int h(y) dy with
    h = exp(-cos(pi y) / (2 pi nu) - (x - y)^2 / (4 nu t)); the trapezoidal rule is
    exact to rounding, since h is smooth on the scale of the nodes and zero at the ends.
    """
    y = np.linspace(-2, 2, nodes)
    smooth = -np.cos(PI * y) / (2 * PI * NU)
    solution = np.empty((len(x), len(t)))
    for column, moment in enumerate(t):
        powers = smooth - (x[:, None] - y) ** 2 / (4 * NU * moment)
        weights = np.exp(powers - powers.max(axis=1, keepdims=True))
        solution[:, column] = -(weights @ np.sin(PI * y)) / weights.sum(axis=1)
    return solution


PROBLEMS = {"Poisson": poisson, "Helmholtz": helmholtz, "Burgers": burgers}
