"""The problems on which defaults of the library were chosen."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from problem import Problem, borrowed, dense, dense_init, equation, rows


def digits(short: bool) -> Problem:
    """Ten class losses whose weights, drawn from [1, 1000], are badly wrong."""
    shared, networks = borrowed("digits"), borrowed("digits_networks")
    images = shared.load_images()
    num_train = len(images[0]) - 2 * (len(images[0]) // 5)
    draw_rows = rows(64)
    # One draw for all seeds, so that static weights have something to be tuned to.
    class_weights = shared.make_problem(images, 0, 1, num_train).class_weights

    def make_data(seed):
        problem = shared.make_problem(images, seed, 1, num_train)
        x, y = problem.train
        chosen = problem.rows[0]
        train = {"rows": (x[chosen], y[chosen]), "weights": class_weights}
        return {"train": train, "validation": problem.val, "test": problem.test}

    def draw(key, train):
        return draw_rows(key, train["rows"]), train["weights"]

    def losses_fn(params, batch):
        return shared.class_losses(params, *batch, networks.mlp)

    def score(params, part):
        x, y = part
        return jnp.mean(networks.mlp(params, x).argmax(axis=-1) != y)

    return Problem(
        name="digits",
        measure="error rate",
        num_terms=shared.K,
        steps=20 if short else 1500,
        make_data=make_data,
        init_params=lambda seed: networks.init_params(seed, (8, 8), "mlp"),
        draw=draw,
        losses_fn=losses_fn,
        score=score,
        undo=1 / class_weights,
    )


def adatask(short: bool, scale: float = 1.0, name: str = "Regressions") -> Problem:
    """AdaTask's two regressions; with large inputs the part that both share counts."""
    source = borrowed("adatask_synthetic")
    sizes = (100, 50, 50) if short else (4000, 500, 1000)

    def make_data(seed: int) -> dict[str, Any]:
        x, y = source.make_data(seed, sum(sizes), scale)
        ends = np.cumsum(sizes)[:2]
        parts = zip(np.split(x, ends), np.split(y, ends), strict=True)
        return dict(zip(("train", "validation", "test"), parts, strict=True))

    def score(params, part):
        spread = part[1].std(axis=(0, 2))
        return jnp.mean(jnp.sqrt(source.losses_fn(params, part)) / spread)

    return Problem(
        name=name,
        measure="normalised RMSE",
        num_terms=source.K,
        steps=20 if short else 800,
        make_data=make_data,
        init_params=source.init_params,
        draw=rows(64),
        losses_fn=source.losses_fn,
        score=score,
    )


def small_inputs(short: bool) -> Problem:
    """The same with inputs of deviation 0.1: B's gradients dominate."""
    return adatask(short, 0.1, "Regressions, small inputs")


def adult(short: bool) -> Problem:
    """Two labels of a person, one network. Seeds change the network and the batches."""
    train, validation, test = borrowed("adult").load(stand_in=short)
    parts = {"train": train, "validation": validation, "test": test}

    def losses_fn(params, batch):
        x, y = batch
        errors = optax.sigmoid_binary_cross_entropy(dense(params, x), y)
        return errors.mean(axis=0)

    def score(params, part):
        x, y = part
        logits = dense(params, x)
        # The mean rank of the positive ones gives the area under the ROC curve.
        ranks = logits.argsort(axis=0).argsort(axis=0) + 1.0
        positive = y.sum(axis=0)
        above = (ranks * y).sum(axis=0) / positive - (positive + 1) / 2
        area = above / (len(y) - positive)
        return jnp.where(jnp.isfinite(logits).all(), 1 - area.mean(), jnp.nan)

    return Problem(
        name="Adult",
        measure="1 − mean AUC",
        num_terms=2,
        steps=20 if short else 1500,
        make_data=lambda seed: parts,
        init_params=lambda seed: dense_init(seed, (train[0].shape[1], 32, 2)),
        draw=rows(64),
        losses_fn=losses_fn,
        score=score,
    )


def multimnist(short: bool) -> Problem:
    """Two overlapping digits in an image of 14 x 14 pixels, a term for each digit."""
    source = borrowed("multimnist")
    sizes = (100, 50, 50) if short else (4000, 1000, 2000)

    def make_data(seed):
        x, y, x_test, y_test = source.load(
            sum(sizes[:2]), sizes[2], seed, stand_in=short
        )
        x, x_test = (
            part.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
            for part in (x, x_test)
        )
        num = sizes[0]
        train, validation = (x[:num], y[:num]), (x[num:], y[num:])
        return {"train": train, "validation": validation, "test": (x_test, y_test)}

    def logits(params, x):
        return dense(params, x).reshape(-1, 2, 10)

    def losses_fn(params, batch):
        x, y = batch
        errors = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
        return errors.mean(axis=0)

    def score(params, part):
        x, y = part
        return jnp.mean(logits(params, x).argmax(axis=-1) != y)

    return Problem(
        name="MultiMNIST",
        measure="mean error rate",
        num_terms=2,
        steps=20 if short else 1000,
        make_data=make_data,
        init_params=lambda seed: dense_init(seed, (196, 64, 20)),
        draw=rows(64),
        losses_fn=losses_fn,
        score=score,
    )


def poisson(short: bool) -> Problem:
    """Poisson's equation, the residual's loss multiplied by 1000."""
    make = partial(borrowed("pde").poisson, points=64, boundary_points=32)
    problem = equation(make, "Poisson, residual x 1000", 20 if short else 2000)
    return problem._replace(undo=np.array([1e-3, 1.0]))


def burgers(short: bool) -> Problem:
    """Burgers' equation: residual, first moment, boundary, all of like size."""
    make = partial(
        borrowed("pde").burgers, points=64, initial_points=32, boundary_points=16
    )
    return equation(make, "Burgers", 20 if short else 2000)
