"""Ten losses, one for each digit class, with weights that are badly wrong.

A small network learns the 1,797 digits of scikit-learn. Class 0 has weight 1, the
other classes have weights drawn uniformly from [1, 1000], as in the first experiment
of MTAdam. The weights count in training only; the test is the plain accuracy. Six
ways to train are compared:

  Adam, correct weights      losses without the weights: not known in practice
  Adam, weighted sum         the weighted losses added up
  AdaTask, MTAdam, balanced  this library, on the weighted losses
  Adam, tuned weights        the weighted sum, times static weights from a random
                             search that gets the training time which MTAdam took

All have the same learning rate, Adam's usual 0.001, as in the paper. Since that may
favour one of them, everything is repeated for a grid of learning rates, and a second
table gives each method the rate with the best accuracy on validation data. Seeds
change the split, the weights, the initial network and the batches; the methods share
them. Seconds are those of the training steps, without compilation and evaluation.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_data import K, load_images, make_problem
from digits_networks import NETWORKS, init_params
from digits_report import draw, make_table, summarize
from rich.console import Console
from rich.progress import Progress

import multiterm_optax as mt


class Method(NamedTuple):
    optimizer: Callable  # learning rate -> Optax transformation
    per_term: bool  # takes the gradient of each loss, not of their sum
    weighted: bool = True


METHODS = {
    "Adam, correct weights": Method(optax.adam, per_term=False, weighted=False),
    "Adam, weighted sum": Method(optax.adam, per_term=False),
    "AdaTask": Method(partial(mt.adatask_adam, num_terms=K), per_term=True),
    "MTAdam": Method(partial(mt.mtadam, num_terms=K), per_term=True),
    "balanced": Method(lambda rate: mt.balanced(optax.adam(rate), K), per_term=True),
    "Adam, tuned weights": Method(optax.adam, per_term=False),  # after MTAdam
}
GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # learning rates


# --- losses and training step: the part to read first ------------------------------


def class_losses(params, batch, class_weights, network):
    """Weighted mean cross entropy of each class in the batch, [K]."""
    images, labels = batch
    logits = network(params, images)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    is_class = jax.nn.one_hot(labels, K)  # [batch, K]
    # A class that the batch lacks has loss 0 / 1 and gradient zero, not 0 / 0.
    examples = jnp.maximum(is_class.sum(axis=0), 1)
    return class_weights * (errors @ is_class) / examples


def train_step(params, state, batch, class_weights, learning_rate, method, network):
    tx = method.optimizer(learning_rate)
    losses_fn = partial(class_losses, network=network)
    if method.per_term:
        _, grads = mt.value_and_term_grads(losses_fn)(params, batch, class_weights)
    else:
        grads = jax.grad(lambda *args: losses_fn(*args).sum())(
            params, batch, class_weights
        )
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


# --- training ----------------------------------------------------------------------


class Trainer:
    """Trains with evaluations in between; compiles each kind of step once."""

    def __init__(self, model, evaluations):
        self.network = NETWORKS[model]
        self.model = model
        self.evaluations = evaluations
        self.predict = jax.jit(lambda p, x: self.network(p, x).argmax(axis=-1))
        self.compiled = {}

    def make_chunk(self, method):
        """A function that takes one step for each row of ``rows``.

        It reuses the memory of ``params`` and ``state`` for their new values.
        """

        def step(params, state, data, rows, class_weights, lr):
            batch = (data[0][rows], data[1][rows])
            return train_step(
                params, state, batch, class_weights, lr, method, self.network
            )

        def scan(params, state, data, rows, class_weights, lr):
            def body(carry, rows):
                params, state = carry
                return step(params, state, data, rows, class_weights, lr), None

            return jax.lax.scan(body, (params, state), rows)[0]

        if self.model == "mlp":
            return jax.jit(scan, donate_argnums=(0, 1))
        # XLA is very slow at convolutions inside its loops on CPU: loop in Python.
        jitted = jax.jit(step, donate_argnums=(0, 1))

        def loop(params, state, data, rows, class_weights, lr):
            for row in rows:
                params, state = jitted(params, state, data, row, class_weights, lr)
            return params, state

        return loop

    def recalls(self, params, examples):
        """Accuracy and the recall of each class, [1 + K]."""
        x, y = examples
        pieces = [self.predict(params, x[i : i + 1000]) for i in range(0, len(x), 1000)]
        right = np.concatenate(pieces) == y
        of_class = [right[y == k] for k in range(K)]
        return np.array([r.mean() if r.size else np.nan for r in (right, *of_class)])

    def run(self, method, problem, lr, static=1.0, advance=lambda: None):
        """One training run: test recalls by step, validation accuracy, seconds."""
        weights = problem.class_weights if method.weighted else np.ones(K)
        params = init_params(problem.seed, problem.train[0].shape[1:], self.model)
        state = method.optimizer(lr).init(params)
        fixed = np.float32(weights * static), np.float32(lr)
        parts = np.split(problem.rows, self.evaluations)
        kind = (method.optimizer, method.per_term)
        if kind not in self.compiled:
            self.compiled[kind] = self.make_chunk(method)
            # One call on copies, so that the seconds below leave compilation out.
            rows = parts[0] if self.model == "mlp" else parts[0][:1]
            copies = jax.tree.map(jnp.copy, (params, state))
            chunk = self.compiled[kind]
            jax.block_until_ready(chunk(*copies, problem.train, rows, *fixed))
        curve, seconds = [self.recalls(params, problem.test)], 0.0
        for rows in parts:
            start = time.perf_counter()
            params, state = jax.block_until_ready(
                self.compiled[kind](params, state, problem.train, rows, *fixed)
            )
            seconds += time.perf_counter() - start
            curve.append(self.recalls(params, problem.test))
            advance()
        val = self.recalls(params, problem.val)[0]
        return SimpleNamespace(curve=np.array(curve), val=val, seconds=seconds)


def search_static(trainer, method, problem, lr, budget):
    """Random search over static weights within ``budget`` seconds of training."""
    # The first trial leaves the losses as they are.
    best = trainer.run(method, problem, lr)
    spent, longest = best.seconds, best.seconds
    while spent + longest <= budget:
        static = 10 ** problem.rng.uniform(-3, 0, K)
        trial = trainer.run(method, problem, lr, static)
        spent, longest = spent + trial.seconds, max(longest, trial.seconds)
        best = max(best, trial, key=lambda run: run.val)
    return SimpleNamespace(curve=best.curve, val=best.val, seconds=spent)


def run_all(args, images, console):
    """The runs of every method, by name and learning rate: a list over the seeds."""
    trainer = Trainer(args.model, args.evaluations)
    runs = {(name, lr): [] for lr in args.lrs for name in METHODS}
    with Progress(console=console) as progress:
        bar = progress.add_task("", total=len(runs) * args.seeds * args.evaluations)
        for seed in range(args.seeds):
            problem = make_problem(images, seed, args.steps, args.batch)
            for name, lr in runs:
                progress.update(bar, description=f"seed {seed}, rate {lr:g}, {name}")
                advance = partial(progress.advance, bar)
                if name == "Adam, tuned weights":
                    budget = runs["MTAdam", lr][seed].seconds
                    run = search_static(trainer, METHODS[name], problem, lr, budget)
                    advance(args.evaluations)
                else:
                    run = trainer.run(METHODS[name], problem, lr, advance=advance)
                runs[name, lr].append(run)
    return runs


# --- the command -------------------------------------------------------------------


def positive(number):
    def parsed(text):
        value = number(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    parsed.__name__ = f"positive {number.__name__}"  # argparse names it in errors
    return parsed


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, count, rate = parser.add_argument, positive(int), positive(float)
    data = "npz of x_train, y_train, x_test, y_test (MNIST); default: 1,797 digits"
    add("--data", type=Path, metavar="FILE", help=data)
    cnn = "cnn: PyTorch's MNIST example, no dropout; 30 minutes a seed for MNIST on CPU"
    add("--model", choices=NETWORKS, default="mlp", help=cnn)
    add("--seeds", type=count, metavar="N", help="default: 5; with --data 1")
    steps = "training steps; default: 1000; with --data one epoch"
    add("--steps", type=count, metavar="N", help=steps)
    add("--batch", type=count, default=64, metavar="N", help="batch size; default: 64")
    add("--lr", type=rate, default=1e-3, help="common rate; default: 0.001")
    lrs = f"grid; default: {', '.join(f'{lr:g}' for lr in GRID)}; with cnn none"
    add("--lrs", type=rate, nargs="*", metavar="LR", help=lrs)
    add("--out", type=Path, default="digits.png", help="figure; default: digits.png")
    add("--short", action="store_true", help="a few seconds, to see that it runs")
    args = parser.parse_args(argv)
    if not args.out.resolve().parent.is_dir():
        parser.error(f"--out: found no folder {args.out.resolve().parent}")
    return args


def main(argv=None):
    """Runs everything; returns the rows of both tables."""
    began = time.perf_counter()
    args = parse(argv)
    images = load_images(args.data)
    full = args.data is not None
    args.seeds = args.seeds or (1 if full or args.short else 5)
    epoch = -(-len(images[0]) * 11 // 12 // args.batch)
    args.steps = args.steps or (60 if args.short else epoch if full else 1000)
    evaluations = 3 if args.short else 20 if args.model == "mlp" else 5
    args.evaluations = min(args.steps, evaluations)
    args.steps -= args.steps % args.evaluations
    if args.lrs is None:
        args.lrs = () if args.model == "cnn" else GRID[1:4:2] if args.short else GRID
    args.lrs = sorted({args.lr, *args.lrs})
    console = Console()
    runs = run_all(args, images, console)

    def score(name, lr):
        return np.mean([run.val for run in runs[name, lr]])

    best = {name: max(args.lrs, key=partial(score, name)) for name in METHODS}
    rows = summarize(runs, dict.fromkeys(METHODS, args.lr))
    best_rows = summarize(runs, best)
    seeds = f"mean ± SD over {args.seeds} seeds" if args.seeds > 1 else "one seed"
    console.print(
        make_table(rows, f"Test set, %, {seeds}: one rate for all", args.seeds)
    )
    if len(args.lrs) > 1:
        title = "Each method at the rate with its best validation accuracy"
        console.print(make_table(best_rows, title, args.seeds))
    draw(runs, args)
    console.print(f"{args.out} drawn; {time.perf_counter() - began:.0f} s in all.")
    return rows, best_rows


if __name__ == "__main__":
    main()
