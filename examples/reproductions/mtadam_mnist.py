"""MTAdam, Table 1 and the ablations of Table 7: ten class losses on MNIST.

The cross entropy of each digit is a term, the mean over its images in the batch. Their
weights are one for the plain sum, else drawn uniformly from [1, 1000] for each seed and
really applied: they multiply the losses before anything is differentiated. One epoch,
batches of 64, the network of PyTorch's MNIST example (two convolutions, two dense
layers, dropout) and its standardised images. The test set is not weighted.

A class has its own rows of the batch, so that ``value_and_row_grads`` finds the ten
gradients at about the cost of two.

The paper leaves open: the learning rates, and whether 100 runs share the weights. Here:
1e-3 for Adam and MTAdam; for SGD with momentum (0.9) and RMSProp the best of a grid by
the accuracy on 5,000 images held out, after 200 steps of the first seed; new weights
for each seed. The paper ablates on other data (pix2pix and SRGAN); here on this task.

The authors' script (github.com/ItzikMalkiel/MTAdam, ``main.py``) gives each class its
weight through ``nll_loss(weight=...)``, whose mean divides by the weights of the rows
it meets. Where one class alone has a weight, that weight cancels: the ten losses that
MTAdam sees there do not depend on the weights at all. Adam's single loss does.
It also draws the weights from [0, 1000], but 1 for class 0, and makes ten runs.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import optax
from common import COLOURS, arguments, console, mean_sd, save, show
from matplotlib.figure import Figure
from rich.progress import Progress

import multiterm_optax as mt

K, BATCH = 10, 64
MEAN, SD = 0.1307, 0.3081  # of the pixels, as in PyTorch's example
PAPER = {
    "SGD with momentum": "85.4",
    "RMSProp": "87.2",
    "Adam": "88.8",
    "MTAdam": "97.9",
    "Adam, plain sum": "98.3",
}


# --- optimizers --------------------------------------------------------------------


class Norms(NamedTuple):
    norms: jax.Array


def inverse_norm(decay):
    """Ablation iii: each term over its own norm, without an anchor."""

    def update(gramian, state, *, losses=None, **extra_args):
        now = jnp.sqrt(jnp.diagonal(gramian))
        moved = decay * state.norms + (1 - decay) * now
        norms = jnp.where(state.norms == 0, now, moved)
        return 1 / jnp.where(norms > 0, norms, 1), Norms(norms)

    return mt.Weighting(lambda num_terms: Norms(jnp.zeros(num_terms)), update)


def variant(first, rate, reduction: Literal["max", "mean", "own"] = "max"):
    return mt.chain(
        *first,
        mt.scale_by_max_adam(K, reduction=reduction),
        optax.scale_by_learning_rate(rate),
    )


# Name: optimizer by rate, whether it takes the terms apart, whether they are weighted.
METHODS = {
    "SGD with momentum": (partial(optax.sgd, momentum=0.9), False, True),
    "RMSProp": (partial(optax.rmsprop, decay=0.99, eps_in_sqrt=False), False, True),
    "Adam": (optax.adam, False, True),
    "MTAdam": (partial(mt.mtadam, num_terms=K), True, True),
    "Adam, plain sum": (optax.adam, False, False),
}
ABLATIONS = {
    "i: no balancing": partial(variant, []),
    "ii: one group": partial(variant, [mt.balance_by_norm(K, groups="global")]),
    "iii: no anchor": partial(
        variant, [mt.reweight(inverse_norm(0.9), K, groups="leaf")]
    ),
    "iv: own second moments": partial(
        variant, [mt.balance_by_norm(K)], reduction="own"
    ),
    "v: mean of them": partial(variant, [mt.balance_by_norm(K)], reduction="mean"),
}
METHODS |= {name: (make, True, True) for name, make in ABLATIONS.items()}
SHORT = ("SGD with momentum", "MTAdam", "Adam, plain sum", "iii: no anchor")
GRIDS = {
    "SGD with momentum": (1e-7, 1e-6, 1e-5, 1e-4),
    "RMSProp": (1e-4, 1e-3, 1e-2),
}


# --- network -----------------------------------------------------------------------


def init_params(seed, side):
    flat = 64 * ((side - 4) // 2) ** 2
    shapes = {
        "conv 1": (3, 3, 1, 32),
        "conv 2": (3, 3, 32, 64),
        "dense 1": (flat, 128),
        "dense 2": (128, K),
    }
    params = {}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    for key, (name, shape) in zip(keys, shapes.items(), strict=True):
        bound = 1 / np.sqrt(np.prod(shape[:-1]))  # as PyTorch's layers start
        w, b = jax.random.split(key)
        params[name] = {
            "w": jax.random.uniform(w, shape, minval=-bound, maxval=bound),
            "b": jax.random.uniform(b, shape[-1:], minval=-bound, maxval=bound),
        }
    return params


def network(params, images, keys=None):
    """Logits; with a key for each row, dropout of its own."""

    def dense(x, name):
        return x @ params[name]["w"] + params[name]["b"]

    def dropout(x, share, place):
        if keys is None:
            return x

        def keep(key):
            key = jax.random.fold_in(key, place)
            return jax.random.bernoulli(key, 1 - share, x.shape[1:])

        return jnp.where(jax.vmap(keep)(keys), x / (1 - share), 0)

    x = images[..., None]
    for name in ("conv 1", "conv 2"):
        x = jax.lax.conv_general_dilated(
            x,
            params[name]["w"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params[name]["b"])
    rows, side = len(x), x.shape[1] // 2
    x = x.reshape(rows, side, 2, side, 2, -1).max(axis=(2, 4)).reshape(rows, -1)
    x = jax.nn.relu(dense(dropout(x, 0.25, 0), "dense 1"))
    return dense(dropout(x, 0.5, 1), "dense 2")


def row_losses(params, rows):
    images, labels, keys = rows
    logits = network(params, images, keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


# --- training ----------------------------------------------------------------------


def make_step(make, apart):
    def step(params, state, rows, class_weights, rate):
        labels = rows[1]
        if apart:
            # The weight of a class multiplies the loss of each of its rows.
            weighted = lambda p, r: row_losses(p, r) * class_weights[r[1]]  # noqa: E731
            _, grads = mt.value_and_row_grads(weighted, K)(params, rows, labels)
        else:

            def total(p):
                counts = jnp.maximum(jnp.bincount(labels, length=K), 1)
                shares = class_weights / counts
                return row_losses(p, rows) @ shares[labels]

            grads = jax.grad(total)(params)
        updates, state = make(rate).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


@jax.jit
def predict(params, images):
    return network(params, images).argmax(axis=-1)


def accuracy(params, images, labels):
    found = [predict(params, images[i : i + 500]) for i in range(0, len(images), 500)]
    right = np.concatenate(found) == labels
    return 100 * np.array(
        [right.mean(), *(right[labels == k].mean() for k in range(K))]
    )


class Trainer:
    def __init__(self, data, steps, held_out):
        self.x, self.y, self.x_test, self.y_test = data
        self.steps = steps
        self.held_out = held_out
        self.compiled = {}

    def run(self, name, seed, rate, steps=None, advance=lambda: None):
        make, apart, weighted = METHODS[name]
        if name not in self.compiled:
            self.compiled[name] = make_step(make, apart)
        rng = np.random.default_rng(seed)
        class_weights = rng.uniform(1, 1000, K) if weighted else np.ones(K)
        class_weights = jnp.asarray(class_weights, jnp.float32)
        order = rng.permutation(len(self.x) - self.held_out)
        params = init_params(seed, self.x.shape[1])
        state = make(rate).init(params)
        keys = jax.random.split(jax.random.key(seed), (self.steps, BATCH))
        for i in range(steps or self.steps):
            rows = order[i * BATCH : (i + 1) * BATCH]
            rows = (self.x[rows], self.y[rows], keys[i, : len(rows)])
            params, state = self.compiled[name](
                params, state, rows, class_weights, jnp.float32(rate)
            )
            advance()
        return params

    def best_rate(self, name, grid, steps, advance):
        def held_out(rate):
            params = self.run(name, 0, rate, steps, advance)
            last = slice(-self.held_out, None)
            return accuracy(params, self.x[last], self.y[last])[0]

        return max(grid, key=held_out)


def main():
    args = arguments(__doc__, seeds=3)
    x, y, x_test, y_test = mnist.load(stand_in=args.short)
    data = ((x - MEAN) / SD, y, (x_test - MEAN) / SD, y_test)
    held_out, tuning, seeds = 5000, 200, args.seeds
    steps = (len(data[0]) - held_out) // BATCH
    if args.short:
        small = [part[:n] for part, n in zip(data, (400, 400, 200, 200), strict=True)]
        data = (small[0][:, ::3, ::3], small[1], small[2][:, ::3, ::3], small[3])
        held_out, tuning, seeds, steps = 100, 2, 1, 4
    trainer = Trainer(data, steps, held_out)
    names = SHORT if args.short else METHODS
    runs = {name: (1 if name in ABLATIONS else seeds) for name in names}
    total = steps * sum(runs.values()) + tuning * sum(
        len(GRIDS.get(name, ())) for name in runs
    )
    rates, found = {}, {}
    with Progress(console=console) as progress:
        bar = progress.add_task("", total=total)
        advance = partial(progress.advance, bar)
        for name, count in runs.items():
            progress.update(bar, description=name)
            rates[name] = 1e-3
            if name in GRIDS:
                rates[name] = trainer.best_rate(name, GRIDS[name], tuning, advance)
            found[name] = np.stack(
                [
                    accuracy(
                        trainer.run(name, seed, rates[name], advance=advance), *data[2:]
                    )
                    for seed in range(count)
                ]
            )
    columns = ["method", "rate", "runs", "accuracy, %", "worst class, %", "paper"]
    rows = [
        [
            name,
            f"{rates[name]:g}",
            str(len(each)),
            mean_sd(each[:, 0], 1),
            mean_sd(each[:, 1:].min(axis=1), 1),
            PAPER.get(name, "–"),
        ]
        for name, each in found.items()
    ]
    table = show(f"MNIST, weights in [1, 1000], {steps} steps", columns, rows)
    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    ax = figure.subplots()
    for i, (name, each) in enumerate(found.items()):
        colour = COLOURS[3] if name in ABLATIONS else COLOURS[2]
        ax.plot(each[:, 0], [i] * len(each), "o", color=colour)
        if name in PAPER:
            ax.plot(float(PAPER[name]), i, "|", color=COLOURS[1], ms=16, mew=2)
    ax.set_yticks(range(len(found)), list(found))
    ax.invert_yaxis()
    ax.set(xlabel="test accuracy, %; orange bar: the paper's mean of 100 runs")
    results = {name: each.tolist() for name, each in found.items()}
    save(args, "mtadam_mnist", figure, [table], {"rates": rates, "accuracy": results})


if __name__ == "__main__":
    main()
