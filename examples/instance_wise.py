"""Every example of the batch as a term: digits by UPGrad, and by the mean loss.

Quinton and Rey ("Jacobian Descent for Multi-Objective Optimization", 2024) minimise
every example's loss and not the mean of the losses: the direction is UPGrad's, which to
first order raises no loss of the batch. A small network learns scikit-learn's digits in
this way, with SGD and with Adam after UPGrad, and from the mean loss. All take the same
batches, each at the rate of its optimizer's grid with the smallest area under the mean
training loss.

The table has, on the training set, the mean loss, that of the tenth with the largest
losses, and that of the half with the smallest, whose gradients count for little in the
mean; the share of a batch whose losses the step has raised; and the test accuracy.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_data import load_images, make_problem
from digits_networks import init_params, mlp
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

import multiterm_optax as mt

METHODS = {
    "SGD, mean loss": (optax.sgd, mt.equal()),
    "SGD, UPGrad": (optax.sgd, mt.upgrad()),
    "Adam, mean loss": (optax.adam, mt.equal()),
    "Adam, UPGrad": (optax.adam, mt.upgrad()),
}
GRIDS = {
    optax.sgd: (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    optax.adam: (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1),
}
STYLES = ("-", "--", "-.", ":")  # the lines differ in more than their colour
COLUMNS = ("mean", "worst tenth", "easiest half", "raised, %", "accuracy, %")


def row_losses(params, rows):
    images, labels = rows
    logits = mlp(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@partial(jax.jit, static_argnames=("method",))
def train(params, data, batches, rate, method):
    """The columns before the first and after every epoch, [epochs + 1, columns]."""
    optimizer, weighting = METHODS[method]
    tx, (training, test) = optimizer(rate), data
    grad = mt.value_and_weighted_grad(row_losses, weighting, gramian="rows")

    def step(carry, chosen):
        params, tx_state, state = carry
        rows = training[0][chosen], training[1][chosen]
        losses, grads, state = grad.update(state, params, rows)
        updates, tx_state = tx.update(grads, tx_state, params)
        params = optax.apply_updates(params, updates)
        raised = jnp.mean(row_losses(params, rows) > losses)
        return (params, tx_state, state), raised

    def evaluate(params, raised):
        losses = jnp.sort(row_losses(params, training))
        right = mlp(params, test[0]).argmax(axis=-1) == test[1]
        tenth, half = losses[-(len(losses) // 10) :], losses[: len(losses) // 2]
        columns = losses, tenth, half, 100 * raised, 100 * right
        return jnp.stack([column.mean() for column in columns])

    def epoch(carry, batches):
        carry, raised = jax.lax.scan(step, carry, batches)
        return carry, evaluate(carry[0], raised)

    start = params, tx.init(params), grad.init(batches.shape[-1])
    _, curve = jax.lax.scan(epoch, start, batches)
    return jnp.concatenate([evaluate(params, jnp.zeros(1))[None], curve])


def run_all(args):
    """Curves [seeds, epochs + 1, columns], and seconds, by method and rate."""
    images, curves, seconds = load_images(), {}, {}
    for method, (optimizer, _) in METHODS.items():
        for rate in GRIDS[optimizer][3:4] if args.short else GRIDS[optimizer]:
            runs = []
            for seed in range(args.seeds):
                problem = make_problem(images, seed, args.epochs * args.steps, 32)
                used = np.unique(problem.rows)  # the others are not for training
                data = tuple(part[used] for part in problem.train), problem.test
                rows = np.searchsorted(used, problem.rows)
                batches = rows.reshape(args.epochs, args.steps, -1)
                params = init_params(seed, (8, 8), "mlp")
                began = time.perf_counter()
                runs.append(np.asarray(train(params, data, batches, rate, method)))
                seconds[method, rate] = time.perf_counter() - began
            curves[method, rate] = np.array(runs)
    return curves, seconds


def choose(curves, method):
    """The rate with the smallest area under the mean training loss."""
    own = {rate: curve for (name, rate), curve in curves.items() if name == method}
    return min(own, key=lambda rate: np.nan_to_num(own[rate][..., 0].mean(), nan=9e9))


def draw(curves, best, path):
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for i, ax in enumerate(figure.subplots(1, 3)):
        for k, (method, rate) in enumerate(best.items()):
            logs = np.log10(np.maximum(curves[method, rate][..., i], 1e-8))
            mean, spread = logs.mean(axis=0), logs.std(axis=0)
            look = {"color": f"C{k}", "linestyle": STYLES[k]}
            ax.plot(10**mean, **look, lw=2, label=f"{method}, rate {rate:g}")
            band = 10 ** (mean + np.multiply.outer([-1, 1], spread))
            ax.fill_between(range(len(mean)), *band, color=f"C{k}", alpha=0.15, lw=0)
        ax.set(title=f"Training loss, {COLUMNS[i]}", xlabel="epoch", yscale="log")
    figure.axes[0].legend(frameon=False, handlelength=3.5)
    figure.savefig(path)


def main(argv=None):
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--short", action="store_true", help="seconds: does it run?")
    parser.add_argument("--seeds", type=int, default=5, help="default: 5")
    parser.add_argument("--epochs", type=int, default=25, help="default: 25")
    parser.add_argument("--out", default="instance_wise.png", help="the picture")
    args = parser.parse_args(argv)
    args.steps = 34  # of 32 examples: an epoch
    if args.short:
        args.seeds, args.epochs, args.steps = 1, 2, 3
    curves, seconds = run_all(args)
    best = {method: choose(curves, method) for method in METHODS}
    table = Table("method", "rate", "epoch", *COLUMNS, box=box.SIMPLE)
    table.title = f"Digits, mean ± SD over {args.seeds} seeds"
    for method, rate in best.items():
        for epoch in sorted({1, -(-args.epochs // 5), args.epochs}):
            columns = curves[method, rate][:, epoch].T
            cells = [f"{column.mean():.2g} ± {column.std():.1g}" for column in columns]
            table.add_row(method, f"{rate:g}", str(epoch), *cells)
    Console().print(table)
    for method, rate in best.items():
        print(f"{method}: {seconds[method, rate]:.2f} s a run")
    draw(curves, best, args.out)
    return curves, best


if __name__ == "__main__":
    main()
