"""SoftAdapt, Sec. 4.3, Fig. 5 and Table 3: a sparse autoencoder on MNIST.

Two terms, the mean square error of the pixels and the L1 norm of the hidden layer's
activations. The paper compares loss-weighted SoftAdapt with the fixed penalty 1e-4,
found by a grid search, both with Adam, for 30 epochs: the loss over the epochs, and the
share of reconstructions that a classifier puts in the right class (PCC: 88 % against
82 % at the end). Here every form of SoftAdapt stands against a grid of penalties, the
plain sum (penalty 1) among them. Reported: both terms and the share of active units on
test images, PCC, seconds, and the error that the grid reaches with the same L1 norm,
interpolated on the logarithms: below SoftAdapt's own, a fixed penalty does better.

The paper leaves open (its supplement is not part of the text used here): the network,
the classifier, learning rate, batch, the losses kept, and how the two terms are scaled.
Here: 784-64-784, ReLU and sigmoid; a classifier of one hidden layer, trained on the
originals; Adam at 1e-3 for all, batches of 100; five losses, beta 0.1. Both terms are
means over the images; the error is a mean over the pixels and the norm a sum over the
units. For a fixed penalty another scale is another name, for SoftAdapt it is another
method: it is also run with the error as a sum and with the norm as a mean. To fit one
core: 8,000 training images and 2,000 test images, not all.
"""

import time
from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import optax
from common import COLOURS, arguments, console, mean_sd, save, show
from matplotlib.figure import Figure
from rich.progress import track

import multiterm_optax as mt

PIXELS, UNITS, CLASSES, RATE, BATCH = 784, 64, 10, 1e-3, 100
EPOCHS = (2, 5, 15, 30)
PENALTIES = (0.0, 1e-5, 1e-4, 3e-4, 6e-4, 8e-4, 1e-3, 2e-3, 3e-3, 1e-2, 1e-1, 1.0)
PAPER = {"fixed, 0.0001": (11, 52, 69, 82), "loss-weighted": (11, 75, 87, 88)}


def fixed(penalty):
    return mt.constant(jnp.stack([1.0, penalty]))


def methods():
    """What makes the weighting, its arguments, and the scales of the two terms."""
    plain = (1, 1)
    softadapt = partial(mt.softadapt, 0.1, normalized=False, eps=1e-8)
    loss_weighted = partial(softadapt, loss_weighted=True)
    current = partial(softadapt, loss_weighted="current")
    return {
        **{f"fixed, {penalty:g}": (fixed, (penalty,), plain) for penalty in PENALTIES},
        "SoftAdapt": (softadapt, (), plain),
        "normalized": (partial(softadapt, normalized=True), (), plain),
        "loss-weighted": (loss_weighted, (), plain),
        "loss-weighted, normalized": (
            partial(loss_weighted, normalized=True),
            (),
            plain,
        ),
        "loss-weighted, current losses": (current, (), plain),
        "SoftAdapt, norm as a mean": (softadapt, (), (1, 1 / UNITS)),
        "loss-weighted, norm as a mean": (loss_weighted, (), (1, 1 / UNITS)),
        "SoftAdapt, error as a sum": (softadapt, (), (PIXELS, 1)),
        "loss-weighted, error as a sum": (loss_weighted, (), (PIXELS, 1)),
    }


def dense(key, size):
    return {
        "w": jax.random.normal(key, size) / np.sqrt(size[0]),
        "b": jnp.zeros(size[1]),
    }


def two_layers(key, sizes):
    first, second = jax.random.split(key)
    return {"in": dense(first, sizes[:2]), "out": dense(second, sizes[1:])}


def forward(params, x):
    hidden = jax.nn.relu(x @ params["in"]["w"] + params["in"]["b"])
    return hidden, hidden @ params["out"]["w"] + params["out"]["b"]


def losses_fn(params, x, scales=(1, 1)):
    hidden, out = forward(params, x)
    error = jnp.mean((jax.nn.sigmoid(out) - x) ** 2)
    norm = jnp.mean(jnp.sum(jnp.abs(hidden), axis=1))
    return jnp.stack([scales[0] * error, scales[1] * norm])


def train_classifier(x, y, epochs):
    """Cross-entropy, Adam; the parameters."""
    tx = optax.adam(RATE)

    def step(carry, chosen):
        def loss(params):
            out = forward(params, x[chosen])[1]
            labels = y[chosen]
            return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params: Any = two_layers(jax.random.key(0), (PIXELS, 128, CLASSES))
    batches = jax.random.randint(
        jax.random.key(1), (epochs * len(x) // BATCH, BATCH), 0, len(x)
    )
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
    return params


def train(weighting, scales, epochs, x, test, classifier, seed, *penalty):
    """By epoch: losses [epochs, 2], penalty, and what :func:`evaluate` finds."""
    weighted_grad = mt.value_and_weighted_grad(losses_fn, weighting(*penalty))
    tx = optax.adam(RATE)

    def step(carry, chosen):
        params, weights, state = carry
        losses, grads, weights = weighted_grad.update(
            weights, params, x[chosen], scales
        )
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, weights, state), (losses, weights.weights)

    def epoch(carry, key):
        order = jax.random.permutation(key, len(x))
        carry, (losses, weights) = jax.lax.scan(step, carry, order.reshape(-1, BATCH))
        found = evaluate(carry[0], classifier, *test)
        error, norm = weights.mean(axis=0) * jnp.asarray(scales, jnp.float32)
        return carry, (losses.mean(axis=0), norm / error, found)

    params = two_layers(jax.random.key(seed), (PIXELS, UNITS, PIXELS))
    carry = (params, weighted_grad.init(2), tx.init(params))
    return jax.lax.scan(epoch, carry, jax.random.split(jax.random.key(seed), epochs))[1]


def evaluate(params, classifier, x, y):
    """Mean square error, L1 norm, share of active units, share classified right."""
    hidden, out = forward(params, x)
    known = jnp.argmax(forward(classifier, jax.nn.sigmoid(out))[1], axis=1)
    right = jnp.mean(known == y)
    return jnp.stack([*losses_fn(params, x), jnp.mean(hidden > 0), right])


def main():
    args = arguments(__doc__, seeds=3)
    images, tests, epochs, seeds = (8000, 2000, EPOCHS[-1], args.seeds)
    names = list(methods())
    if args.short:
        images, tests, epochs, seeds = 300, 200, 2, 1
        names = ["fixed, 0", "fixed, 0.0001", "fixed, 1", "loss-weighted"]
    x, y, x_test, y_test = (
        jnp.asarray(part) for part in mnist.load(stand_in=args.short)
    )
    x, x_test = x.reshape(-1, PIXELS), x_test.reshape(-1, PIXELS)
    classified = (x[:images], y[:images], 1) if args.short else (x, y, 3)
    classifier = jax.jit(train_classifier, static_argnums=2)(*classified)
    x, test = x[:images], (x_test[:tests], y_test[:tests])
    originals = jnp.argmax(forward(classifier, test[0])[1], axis=1)
    originals = float(jnp.mean(originals == test[1]))

    programs, found, seconds = {}, {}, {}
    jobs = [(name, seed) for name in names for seed in range(seeds)]
    for name, seed in track(jobs, "training", console=console):
        weighting, penalty, scales = methods()[name]
        data = (x, test, classifier, seed, *penalty)
        kind = fixed if penalty else name
        if kind not in programs:
            run = jax.jit(partial(train, weighting, scales, epochs))
            programs[kind] = run.lower(*data).compile()
        start = time.perf_counter()
        result = jax.tree.map(np.asarray, programs[kind](*data))
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        found.setdefault(name, []).append(result)
    # By method: losses [seeds, epochs, 2], penalties, tests [seeds, epochs, 4].
    found = {
        name: tuple(np.stack(parts) for parts in zip(*results, strict=True))
        for name, results in found.items()
    }
    grid = [name for name in found if name.startswith("fixed")]
    curve = np.array([found[name][2][:, -1, :2].mean(axis=0) for name in grid])
    marks = [epoch for epoch in EPOCHS if epoch <= epochs]
    rows = []
    for name, (_, penalties, tested) in found.items():
        end = tested[:, -1]
        paper = PAPER.get(name)
        beside = grid_error(curve, end[:, 1].mean())
        rows.append(
            [
                name,
                mean_sd(1e3 * end[:, 0], 1),
                mean_sd(end[:, 1]),
                f"{100 * end[:, 2].mean():.0f} %",
                "" if name in grid else f"{1e3 * beside:.1f}",
                f"{penalties[:, -1].mean():.1e}",
                *(f"{100 * tested[:, e - 1, 3].mean():.0f}" for e in marks),
                "–" if paper is None else ", ".join(str(value) for value in paper),
                mean_sd(seconds[name], 1),
            ]
        )
    columns = ["weights", "error x 1000", "L1 norm", "active", "grid's error there"]
    columns += ["penalty at the end", *(f"PCC, {epoch}" for epoch in marks)]
    columns += ["paper's PCC", "seconds"]
    title = f"Test images after {epochs} epochs, {seeds} seeds; "
    title += f"PCC of the originals {100 * originals:.0f} %"
    parts = [list(range(1, 6)), list(range(6, len(columns)))]
    table = show(title, columns, rows, parts)
    figure = plot(found, grid, curve)
    results = {
        name: {
            "losses": losses.tolist(),
            "penalty": penalties.tolist(),
            "test": tested.tolist(),
            "seconds": seconds[name],
        }
        for name, (losses, penalties, tested) in found.items()
    }
    save(args, "softadapt_autoencoder", figure, [table], results)


def grid_error(curve, norm):
    """The grid's error at this L1 norm; that of its end where it has none so small."""
    errors, norms = np.log(np.maximum(curve, 1e-6)).T
    order = np.argsort(norms)
    return np.exp(np.interp(np.log(max(norm, 1e-6)), norms[order], errors[order]))


def plot(found, grid, curve):
    figure = Figure(figsize=(13, 4.6), dpi=80, layout="constrained")
    plane, penalty, classes = figure.subplots(1, 3)
    plane.plot(curve[:, 1], curve[:, 0], "o-", color="grey", label="fixed penalties")
    for name, (error, norm) in zip(grid, curve, strict=True):
        text = name.split(", ")[1]
        if float(text) <= 0.003:
            plane.annotate(
                text, (norm, error), (4, 4), textcoords="offset points", size=7
            )
        _, ratios, tested = found[name]
        epochs = np.arange(1, ratios.shape[1] + 1)
        classes.plot(epochs, tested[..., 3].mean(axis=0), color="grey", lw=0.7)
        if ratios.any():
            penalty.plot(epochs, ratios.mean(axis=0), color="grey", lw=0.7)
    others = [name for name in found if name not in grid]
    for name, colour, mark in zip(others, cycle(COLOURS[1:]), "ovs^DPX*<"):
        _, ratios, tested = found[name]
        end = tested[:, -1]
        style = {"color": colour, "marker": mark, "markevery": 5, "ms": 5}
        plane.plot(end[:, 1], end[:, 0], ls="", label=name, **style)
        epochs = np.arange(1, ratios.shape[1] + 1)
        penalty.plot(epochs, ratios.mean(axis=0), **style)
        classes.plot(epochs, tested[..., 3].mean(axis=0), **style)
    plane.set_xscale("symlog", linthresh=0.01)
    plane.set(yscale="log", xlabel="L1 norm of the hidden layer", title="test images")
    plane.set_ylabel("mean square error")
    penalty.set(yscale="log", xlabel="epoch", title="penalty: L1's weight / error's")
    classes.set(xlabel="epoch", title="reconstructions classified right", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=5, fontsize="small")
    return figure


if __name__ == "__main__":
    main()
