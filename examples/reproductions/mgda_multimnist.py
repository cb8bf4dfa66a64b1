"""MGDA thesis, 3.1: two overlapping digits; inexact MGDA, with fixed and found bounds.

The data are images of two overlapping MNIST digits (10,000 for training, 5,000 for the
test). The network has a shared encoder and a head of ten sigmoids for each digit, with
cross entropy and Nesterov's momentum 0.9. The thesis compares MGDA, inexact MGDA with a
constant bound on the gradients' errors, which skips the steps that the bound makes
doubtful, and adaptive MGDA, which finds the bound from each epoch's batches and
multiplies it by lambda. It shows the accuracies as points in a figure and prints no
numbers for them.

Reported: the accuracy of both digits on test data, the share of the steps that were
skipped, the errors found over the epochs, the weights over the steps. Besides the
thesis's methods: the sum of the losses, the sum at the best of a few static weights,
and each digit learned alone. The parameters of a method (rate, weights, bound) are
chosen by the mean accuracy on 2,000 held-out images in the first seed; every value of a
sweep is shown.

The thesis leaves open: the batch, the sizes of the network (it shows that of Sener and
Koltun), how the ten cross entropies of a digit become one loss, which parameters count
as shared, whether all figures are of the last epoch, and seeds. Here: batches of 64,
the sum over the ten, the mean over the batch, gradients of all parameters, the last
epoch, and seeds that change the network and the batches but not the images. Not as
there, to fit on one core: convolutions with stride 2 in place of pooling, 20 epochs
and not 100; and since fewer epochs want longer steps, the best rate of a grid around
the thesis's 0.001, found for the sum and for MGDA; the inexact forms have MGDA's.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import multimnist
import numpy as np
import optax
from common import arguments, console, save, show
from mgda_multimnist_report import claims, draw, table
from rich.progress import Progress

import multiterm_optax as mt

K, CLASSES, BATCH = 2, 10, 64
EPOCHS = 20
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHARES = (0.3, 0.4, 0.6, 0.7)  # static weights: the left digit's, of their sum
BOUNDS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
SCALES = (0.03, 0.1, 0.3, 0.5, 1.0)
SIZES = {"conv 1": (25, 10), "conv 2": (250, 20), "dense": (320, 50)}
SIZES |= {f"head {term}": (50, CLASSES) for term in range(K)}


# --- network -----------------------------------------------------------------------


def init_params(key):
    params = {}
    for name, shape in SIZES.items():
        key, w, b = jax.random.split(key, 3)
        bound = 1 / np.sqrt(shape[0])  # as PyTorch's layers start
        params[name] = {
            "w": jax.random.uniform(w, shape, minval=-bound, maxval=bound),
            "b": jax.random.uniform(b, shape[-1:], minval=-bound, maxval=bound),
        }
    return params


def patches(x, size=5, stride=2):
    """Slices and one product: XLA's convolution is very slow in a loop on CPU."""
    for axis in (1, 2):
        last = x.shape[axis] - size + 1
        shifts = [
            jax.lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(size)
        ]
        x = jnp.concatenate(shifts, axis=-1)
    return x


def network(params, images):
    """Logits [rows, K, classes]."""

    def dense(x, name):
        return x @ params[name]["w"] + params[name]["b"]

    x = images[..., None]
    for name in ("conv 1", "conv 2"):
        x = jax.nn.relu(dense(patches(x), name))
    x = jax.nn.relu(dense(x.reshape(len(x), -1), "dense"))
    return jnp.stack([dense(x, f"head {term}") for term in range(K)], axis=1)


def losses_fn(params, images, labels):
    targets = jax.nn.one_hot(labels, CLASSES)
    errors = optax.sigmoid_binary_cross_entropy(network(params, images), targets)
    return errors.sum(axis=2).mean(axis=0)


@jax.jit
def right(params, images, labels):
    return (network(params, images).argmax(axis=2) == labels).mean(axis=0)


def accuracies(params, images, labels):
    """Of both digits, in per cent."""
    at = range(0, len(images), 1000)
    found = [right(params, images[i : i + 1000], labels[i : i + 1000]) for i in at]
    return 100 * np.mean(found, axis=0)


# --- methods -----------------------------------------------------------------------


def optimizer(method, rate, value, steps_per_epoch):
    """``value``: the bound, or lambda."""
    inner = optax.sgd(rate, momentum=0.9, nesterov=True)
    if method == "MGDA":
        return mt.weighted(mt.mgda(), inner, K)
    if method == "inexact":
        return mt.weighted(mt.inexact_mgda(value), inner, K)
    return mt.adaptive_mgda(inner, K, value, steps_per_epoch=steps_per_epoch)


class Run(NamedTuple):
    params: Any
    losses: Any  # means of the epochs, [epochs, K]
    weights: Any = None  # [epochs, steps, K]; zero: skipped
    errors: Any = None  # found in the epochs, [epochs, K]


def in_epochs(step, start, key, rows, epochs):
    """Scans ``step`` over shuffled batches: what it returned, [epochs, steps, ...]."""
    steps = rows // BATCH

    def epoch(carry, key):
        order = jax.random.permutation(key, rows)[: steps * BATCH]
        return jax.lax.scan(step, carry, order.reshape(steps, BATCH))

    return jax.lax.scan(epoch, start, jax.random.split(key, epochs))


@partial(jax.jit, static_argnames="epochs")
def train_sum(data, seed, rate, weights, *, epochs):
    """The ordinary way: one gradient, of the sum at static weights."""
    x, y = data
    tx = optax.sgd(rate, momentum=0.9, nesterov=True)

    def total(params, rows):
        losses = losses_fn(params, x[rows], y[rows])
        return losses @ weights, losses

    def step(carry, rows):
        params, state = carry
        grads, losses = jax.grad(total, has_aux=True)(params, rows)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), losses

    start, key = jax.random.split(jax.random.key(seed))
    params = init_params(start)
    carry = params, tx.init(params)
    (params, _), losses = in_epochs(step, carry, key, len(x), epochs)
    return Run(params, losses.mean(axis=1))


@partial(jax.jit, static_argnames=("method", "epochs"))
def train_terms(data, seed, rate, value, *, method, epochs):
    x, y = data
    tx: Any = optimizer(method, rate, value, len(x) // BATCH)

    def step(carry, rows):
        params, state = carry
        losses, grads = mt.value_and_term_grads(losses_fn)(params, x[rows], y[rows])
        updates, state = tx.update(grads, state, params)
        weights = optax.tree.get(state, "weights")
        eps = optax.tree.get(state, "eps", jnp.zeros(K))
        return (optax.apply_updates(params, updates), state), (losses, weights, eps)

    start, key = jax.random.split(jax.random.key(seed))
    params = init_params(start)
    carry = params, tx.init(params)
    (params, _), (losses, weights, eps) = in_epochs(step, carry, key, len(x), epochs)
    # An epoch's last step renews the bound: lambda times the error just measured.
    return Run(params, losses.mean(axis=1), weights, eps[:, -1] / value)


class Result(NamedTuple):
    """One method at one value, every seed."""

    held_out: Any  # of the first seed, the mean of both digits
    test: Any  # [seeds, K]
    losses: Any  # [seeds, epochs, K]
    weights: Any  # [seeds, epochs, steps, K]
    errors: Any  # [seeds, epochs, K]

    def skipped(self, epoch=slice(None)):
        """Share of the steps, in per cent, [seeds]."""
        if self.weights is None:
            return np.zeros(len(self.test))
        taken = self.weights[:, epoch].any(axis=-1)
        return 100 * (1 - taken.reshape(len(taken), -1).mean(axis=1))


class Experiment:
    def __init__(self, short, seeds, advance):
        count, held_out, test = (320, 100, 100) if short else (10_000, 2000, 5000)
        x, y, *self.test = multimnist.load(count + held_out, test, stand_in=short)
        self.data = jnp.asarray(x[:count]), jnp.asarray(y[:count])
        self.held_out = x[count:], y[count:]
        self.seeds, self.epochs = seeds, 2 if short else EPOCHS
        self.advance = advance

    def run(self, method, rate, value, seeds=None):
        rate, value = jnp.float32(rate), jnp.asarray(value, jnp.float32)
        train = train_sum if method == "sum" else partial(train_terms, method=method)
        runs, test = [], []
        for seed in range(seeds or self.seeds):
            run = train(self.data, seed, rate, value, epochs=self.epochs)
            test.append(accuracies(run.params, *self.test))
            runs.append(run)
            self.advance()
        held_out = accuracies(runs[0].params, *self.held_out).mean()

        def stacked(name):
            found = [getattr(run, name) for run in runs]
            return None if found[0] is None else np.stack(found)

        parts = [stacked(name) for name in ("losses", "weights", "errors")]
        return Result(float(held_out), np.stack(test), *parts)

    def best(self, method, candidates, **how):
        """The (rate, value) with the best accuracy on held-out images, one seed."""
        found = {each: self.run(method, *each, seeds=1) for each in candidates}
        return max(found, key=lambda each: found[each].held_out), found


def main():
    args = arguments(__doc__, seeds=5)
    seeds = 1 if args.short else args.seeds
    rates, shares, bounds, scales = RATES, SHARES, BOUNDS, SCALES
    if args.short:
        rates, shares, bounds, scales = (1e-2,), (0.4,), (0.1, 10.0), (0.1, 1.0)
    total = 2 * len(rates) + len(shares)
    total += seeds * (5 + len(bounds) + len(scales))
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=total)
        experiment = Experiment(args.short, seeds, partial(progress.advance, bar))
        ones = (1.0, 1.0)
        (rate, _), tried = experiment.best("sum", [(r, ones) for r in rates])
        tuning = {f"sum, {r:g}": each.held_out for (r, _), each in tried.items()}
        static = [(rate, (2 * share, 2 - 2 * share)) for share in shares]
        (_, weights), tried = experiment.best("sum", static)
        tuning |= {f"sum, {w}": each.held_out for (_, w), each in tried.items()}
        (mgda_rate, _), tried = experiment.best("MGDA", [(r, 0.0) for r in rates])
        tuning |= {f"MGDA, {r:g}": each.held_out for (r, _), each in tried.items()}
        results = {}
        for value in (ones, weights, (1.0, 0.0), (0.0, 1.0)):
            results["sum", value] = experiment.run("sum", rate, value)
        results["MGDA", 0.0] = experiment.run("MGDA", mgda_rate, 0.0)
        for name, values in (("inexact", bounds), ("adaptive", scales)):
            for value in values:
                results[name, value] = experiment.run(name, mgda_rate, value)

    chosen = {"sum": ("sum", ones), "MGDA": ("MGDA", 0.0)}
    for name in ("inexact", "adaptive"):
        sweep = [key for key in results if key[0] == name]
        chosen[name] = max(sweep, key=lambda key: results[key].held_out)
    title = f"Accuracy after {experiment.epochs} epochs, seeds: {seeds}; rate {rate:g} "
    title += f"(MGDA: {mgda_rate:g}); bold: chosen on held-out images"
    columns = ["method", "left, %", "right, %", "mean", "less MGDA's", "skipped"]
    columns += ["last epoch", "thesis"]
    tables = [
        show(title, columns, table(results, chosen), [[1, 2, 3, 4], [5, 6, 7]]),
        show(
            "What the thesis says of its pictures; adaptive MGDA at the chosen λ",
            ["", "thesis", "here"],
            claims(results, chosen["inexact"][1], chosen["adaptive"][1]),
        ),
    ]
    saved = {
        "rates": {"sum": rate, "MGDA": mgda_rate},
        "held out": tuning,
        "results": [
            {
                "method": method,
                "value": value,
                "held out": result.held_out,
                "test": result.test.tolist(),
                "skipped": result.skipped().tolist(),
            }
            for (method, value), result in results.items()
        ],
    }
    save(args, "mgda_multimnist", draw(results, chosen), tables, saved)


if __name__ == "__main__":
    main()
