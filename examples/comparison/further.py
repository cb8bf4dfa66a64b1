"""Further problems on which nothing of the library was chosen."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from held_out_data import raw_targets, split
from held_out_equations import (
    PI,
    Equation,
    at_lattice,
    derivatives,
    in_time,
    init_params,
    network,
    square,
)
from held_out_images import CLASSES, PIXELS, load
from problem import Problem, dense, dense_init, equation, rows

# --- equations ----------------------------------------------------------------------


def convection(short: bool) -> Problem:
    """Convection u_t + 10 u_x = 0, periodic in x, with u(x, 0) = sin(x).

    Terms: residual, equal values at both ends of x, and initial value. From
    Krishnapriyan et al. (2021), "Characterizing possible failure modes in PINNs".
    """
    return equation(_convection, "Convection", 20 if short else 4000)


def _convection(speed=10.0, points=64, side_points=32):
    size = jnp.array([2 * PI, 1.0])

    def true(xp, x, t):
        return xp.sin(x - speed * t)

    def predict(params, at):
        return network(params, at)[0]

    def sample(key):
        at = in_time(key, points, side_points)
        return {name: part * size for name, part in at.items()}

    def losses_fn(params, at):
        _, ((u_x, u_t),), _ = derivatives(params, at["residual"])
        low, high = (at["boundary"].at[:, 0].set(end) for end in (0.0, 2 * PI))
        start = predict(params, at["initial"]) - true(jnp, *at["initial"].T)
        return jnp.stack(
            [
                square(u_t + speed * u_x),
                square(predict(params, low) - predict(params, high)),
                square(start),
            ]
        )

    axes = np.linspace(0, 2 * PI, 61), np.linspace(0, 1, 51)
    return Equation(
        ("residual", "boundary", "initial value"),
        init_params,
        sample,
        losses_fn,
        predict,
        *at_lattice(axes, partial(true, np)),
    )


def poisson_mixed(short: bool) -> Problem:
    """Poisson's equation on the unit square, u = sin(2 pi x) sin(pi y / 2).

    Terms: residual, values at the two ends of x (Dirichlet), and derivatives by y at
    the two ends of y (Neumann). The solution is made up, the force follows from it.
    """
    return equation(_poisson_mixed, "Poisson, mixed", 20 if short else 3000)


def _poisson_mixed(points=64, side_points=32):
    def true(xp, x, y):
        return xp.sin(2 * PI * x) * xp.sin(PI * y / 2)

    def predict(params, at):
        return network(params, at)[0]

    def sample(key):
        one, two, three = jax.random.split(key, 3)
        ends = jnp.arange(side_points) % 2
        values = jax.random.uniform(two, (side_points, 2))
        slopes = jax.random.uniform(three, (side_points, 2))
        return {
            "residual": jax.random.uniform(one, (points, 2)),
            "dirichlet": values.at[:, 0].set(ends),
            "neumann": slopes.at[:, 1].set(ends),
        }

    def losses_fn(params, at):
        _, _, ((u_xx, u_yy),) = derivatives(params, at["residual"])
        force = (4 + 1 / 4) * PI**2 * true(jnp, *at["residual"].T)
        value = predict(params, at["dirichlet"]) - true(jnp, *at["dirichlet"].T)
        _, ((_, u_y),), _ = derivatives(params, at["neumann"])
        x, y = at["neumann"].T
        slope = u_y - PI / 2 * jnp.sin(2 * PI * x) * jnp.cos(PI * y / 2)
        return jnp.stack([square(u_xx + u_yy + force), square(value), square(slope)])

    axis = np.linspace(0, 1, 51)
    return Equation(
        ("residual", "Dirichlet", "Neumann"),
        init_params,
        sample,
        losses_fn,
        predict,
        *at_lattice((axis, axis), partial(true, np)),
    )


def oscillator(short: bool) -> Problem:
    """A damped oscillator u'' + c u' + k u = 0 with unknown c and k, seen with noise.

    Terms: residual, and squared errors at 30 noisy observations, which are other ones
    for every seed. Moseley's "So, what is a physics-informed neural network?" (2021)
    has c = 4, k = 400 and t in [0, 1], where Adam on the sum finds nothing but u = 0;
    here, time is counted in tenths, which makes it c = 0.4, k = 4 and t in [0, 10].
    """
    problem = equation(_oscillator, "Oscillator, inverse", 20 if short else 4000)

    def make_data(seed):
        rng = np.random.default_rng(seed)
        t = np.sort(rng.uniform(high=10, size=(30, 1)), axis=0)
        seen = _swing(t[:, 0]) + 0.05 * rng.normal(size=30)
        train = t.astype(np.float32), seen.astype(np.float32)
        return problem.make_data(seed) | {"train": train}

    def draw(key, train):
        return {
            "residual": jax.random.uniform(key, (64, 1), maxval=10.0),
            "seen": train,
        }

    return problem._replace(make_data=make_data, draw=draw)


def _swing(t, c=0.4, k=4.0):
    """The oscillator's solution, with u(0) = 1 and u'(0) = 0."""
    pitch = np.sqrt(k - c**2 / 4)
    wave = np.cos(pitch * t) + c / (2 * pitch) * np.sin(pitch * t)
    return np.exp(-c * t / 2) * wave


def _oscillator():
    def init(key, width):
        return {
            "network": init_params(key, width, inputs=1),
            "logs": jnp.zeros(2),  # of c and k
        }

    def predict(params, t):
        return network(params["network"], t)[0]

    def losses_fn(params, at):
        inputs = at["residual"], jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1))
        (u,), ((u_t,),), ((u_tt,),) = derivatives(params["network"], None, inputs)
        c, k = jnp.exp(params["logs"])
        t, seen = at["seen"]
        return jnp.stack(
            [square(u_tt + c * u_t + k * u), square(predict(params, t) - seen)]
        )

    def sample(key):
        raise NotImplementedError("expected the draw of oscillator, with observations")

    grid = np.linspace(0, 10, 401, dtype=np.float32)[:, None]
    solution = _swing(grid[:, 0].astype(float)).astype(np.float32)
    return Equation(
        ("residual", "data"), init, sample, losses_fn, predict, grid, solution
    )


# --- data ---------------------------------------------------------------------------


def wine(short: bool) -> Problem:
    """Scikit-learn's wine: four measurements from the other nine.

    A term for each of proline, magnesium, alcohol and hue, whose deviations go from 314
    to 0.23. With 108 rows to train on, the score tells also how much a method overfits.
    """
    from sklearn.datasets import load_wine

    found: Any = load_wine()
    columns = dict(zip(found.feature_names, found.data.T, strict=True))
    y = [columns.pop(name) for name in ("proline", "magnesium", "alcohol", "hue")]
    x = np.stack([*columns.values()], axis=1)
    return raw_targets("Wine", x, np.stack(y, axis=1), short)


def digits_tasks(short: bool) -> Problem:
    """Scikit-learn's digits, three unlike tasks for one network.

    Terms: cross-entropy of the class, binary cross-entropy of odd against even, and
    squared error of the ink, the sum of the pixels of 0 to 16, less its training mean.
    """
    images, labels = load(short)
    ink = 16 * images.sum(axis=1)

    def make_data(seed):
        parts = split(np.random.default_rng(seed), images, labels, ink)
        middle = parts["train"][2].mean()
        return {name: (x, y, z - middle) for name, (x, y, z) in parts.items()}

    def predict(params, x):
        found = dense(params, x)
        return found[:, :CLASSES], found[:, CLASSES], found[:, CLASSES + 1]

    def losses_fn(params, batch):
        x, y, z = batch
        logits, odd, drawn = predict(params, x)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        parity = optax.sigmoid_binary_cross_entropy(odd, y % 2)
        return jnp.stack([errors.mean(), parity.mean(), square(drawn - z)])

    def score(params, part):
        x, y, z = part
        logits, odd, drawn = predict(params, x)
        wrong = jnp.mean(logits.argmax(axis=-1) != y)
        parity = jnp.mean((odd > 0) != (y % 2 == 1))
        return (wrong + parity + jnp.sqrt(square(drawn - z)) / z.std()) / 3

    return Problem(
        name="Digits, three tasks",
        measure="mean of two error rates and normalised RMSE",
        num_terms=3,
        steps=20 if short else 3000,
        make_data=make_data,
        init_params=lambda seed: dense_init(seed, (PIXELS, 64, 32, CLASSES + 2)),
        draw=rows(64),
        losses_fn=losses_fn,
        score=score,
    )
