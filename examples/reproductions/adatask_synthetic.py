"""AdaTask, Table 2 and Fig. 2: two regressions, one of which dominates.

``y^k(x) = W_1^k x + W_2^k x^2 + W_3 x^3 + noise`` from 250 inputs to 100 outputs,
with ``W^A ~ N(1, 1)`` and ``W^B, W_3 ~ N(10, 10)``, so that B has the larger gradients,
and a shared network of four layers (ELU) and a linear head for each task, RMSProp.
Reported: the root mean square error of each task on test data, divided by the standard
deviation of its targets, and how many shared parameters a task dominates (rAU).

Equal weights at two and four times the learning rate are controls: AdaTask's steps are
about twice as long, since each task's step is normalised alone. So are two static
weights of B, which a user would try first.

The paper leaves open: how x is drawn, the sizes of layers, data and batch, the learning
rate and the number of steps, and by what the error is normalised. Here: layers of 100,
10,000 rows for training and 1,000 for the test, batches of 100, learning rate 1e-3, and
targets in units of the standard deviation of task A's. x is normal, with deviation 1
and with 0.1. With 1 the cubes, which both tasks share, make up most of the targets: B
does not dominate, and 10,000 rows are too few to learn them. The paper's own figures
speak for small x: nearly all parameters dominated by B under equal weights, and errors
of 0.01.
"""

import textwrap
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from adatask_common import DECAY, K, adatask, layer_shares, shared
from common import arguments, console, mean_sd, save, show
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.progress import track

import multiterm_optax as mt

INPUTS, OUTPUTS, WIDTH, RATE = 250, 100, 100, 1e-3
LAYERS = [f"layer {i}" for i in range(4)]
SCALES = (1.0, 0.1)  # of the inputs
PAPER = {
    "equal weights": (0.2172, 0.0113),
    "GradNorm": (0.1134, 0.0226),
    "uncertainty": (0.2032, 0.0100),
    "PCGrad": (0.2221, 0.0155),
    "CAGrad": (0.1495, 0.0140),
    "AdaTask": (0.0704, 0.0417),
    "layer-wise AdaTask": (0.0989, 0.0285),
}


def methods():
    ones = mt.constant(jnp.ones(K))
    return {
        "equal weights": shared(ones, RATE),
        "equal weights, rate x 2": shared(ones, 2 * RATE),
        "equal weights, rate x 4": shared(ones, 4 * RATE),
        "weights 1, 0.1": shared(mt.constant(jnp.array([1, 0.1])), RATE),
        "weights 1, 0.01": shared(mt.constant(jnp.array([1, 0.01])), RATE),
        "GradNorm": shared(mt.gradnorm(), RATE),
        "uncertainty": shared(mt.uncertainty(), RATE),
        "PCGrad": shared(mt.pcgrad(jax.random.key(0)), RATE),
        "CAGrad": shared(mt.cagrad(), RATE),
        "AdaTask": adatask(RATE),
        "layer-wise AdaTask": mt.ladatask_rmsprop(RATE, K, decay=DECAY),
    }


def make_data(seed, rows, scale):
    """Inputs and targets [rows, K, outputs]."""
    rng = np.random.default_rng(seed)

    def matrix(mean, spread):
        return rng.normal(mean, spread, (INPUTS, OUTPUTS))

    first = [matrix(1, 1), matrix(10, 10)]
    second = [matrix(1, 1), matrix(10, 10)]
    third = matrix(10, 10)
    x = rng.normal(0, scale, (rows, INPUTS))
    noise = rng.normal(0, 0.1, (rows, K, OUTPUTS))
    y = np.stack(
        [x @ a + x**2 @ b + x**3 @ third for a, b in zip(first, second, strict=True)],
        axis=1,
    )
    y = y + noise
    return x.astype(np.float32), (y / y[:, 0].std()).astype(np.float32)


def init_params(seed):
    sizes = (
        [(INPUTS, WIDTH)]
        + [(WIDTH, WIDTH)] * (len(LAYERS) - 1)
        + [(WIDTH, OUTPUTS)] * K
    )
    names = [*LAYERS, "head A", "head B"]
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return {
        name: {
            "w": jax.random.normal(key, size) / np.sqrt(size[0]),
            "b": jnp.zeros(size[1]),
        }
        for name, key, size in zip(names, keys, sizes, strict=True)
    }


def losses_fn(params, batch):
    x, y = batch
    for layer in LAYERS:
        x = jax.nn.elu(x @ params[layer]["w"] + params[layer]["b"])
    heads = [x @ params[f"head {k}"]["w"] + params[f"head {k}"]["b"] for k in "AB"]
    return jnp.stack([jnp.mean((h - y[:, k]) ** 2) for k, h in enumerate(heads)])


def train(tx, records, per_record, batch_size, data, seed):
    """Final parameters, and the dominance shares of task B in every layer."""
    rows = data[0].shape[0]

    def step(carry, key):
        params, state = carry
        chosen = jax.random.randint(key, (batch_size,), 0, rows)
        batch = jax.tree.map(lambda part: part[chosen], data)
        losses, grads = mt.value_and_term_grads(losses_fn)(params, batch)
        updates, state = tx.update(grads, state, params, losses=losses)
        return (optax.apply_updates(params, updates), state), None

    def record(carry, keys):
        (params, state), _ = jax.lax.scan(step, carry, keys)
        return (params, state), layer_shares(state, LAYERS)

    params: Any = init_params(seed)
    keys = jax.random.split(jax.random.key(seed), records * per_record)
    keys = keys.reshape(records, per_record)
    (params, _), shares = jax.lax.scan(record, (params, tx.init(params)), keys)
    return params, shares


def main():
    args = arguments(__doc__, seeds=3)
    records, per_record, rows, seeds, scales = (100, 100, 10_000, args.seeds, SCALES)
    if args.short:
        records, per_record, rows, seeds, scales = 5, 4, 200, 1, SCALES[1:]
    runs = {
        name: jax.jit(partial(train, tx, records, per_record, 100))
        for name, tx in methods().items()
    }
    errors = {scale: {name: [] for name in runs} for scale in scales}
    shares = {scale: {} for scale in scales}
    jobs = [(c, s, name) for c in scales for s in range(seeds) for name in runs]
    for scale, seed, name in track(jobs, "training", console=console):
        x, y = make_data(seed, rows + 1000, scale)
        params, found = runs[name]((jnp.asarray(x[1000:]), jnp.asarray(y[1000:])), seed)
        test = losses_fn(params, (jnp.asarray(x[:1000]), jnp.asarray(y[:1000])))
        spread = y[:1000].std(axis=(0, 2))
        errors[scale][name].append((np.sqrt(test) / spread).tolist())
        if found.size and seed == 0:
            shares[scale][name] = np.asarray(found)
    report(args, records, per_record, errors, shares)


def report(args, records, per_record, errors, shares):
    """The tables, the figure and the numbers behind them."""
    columns = ["method", "A", "B", "mean", "paper: A", "B", "mean"]
    columns += ["rAU of B over 80 %", "40 to 60 %"]
    tables = []
    for scale, by_method in errors.items():
        title = f"Normalised RMSE after {records * per_record} steps, "
        title += f"{len(by_method['AdaTask'])} seeds, inputs of deviation {scale:g}"
        rows = [
            line(name, found, shares[scale].get(name))
            for name, found in by_method.items()
        ]
        tables.append(show(title, columns, rows, [[1, 2, 3, 4, 5, 6], [7, 8]]))
    figure = plot(shares, per_record)
    results = {
        f"inputs of deviation {scale:g}": {
            "errors": errors[scale],
            "shares": {n: s.round(4).tolist() for n, s in shares[scale].items()},
        }
        for scale in errors
    }
    save(args, "adatask_synthetic", figure, tables, results)


def line(name, found, dominated):
    both = np.array(found)
    paper = PAPER.get(name)
    end = None if dominated is None else 100 * dominated[-1, 0]
    return [
        name,
        *(mean_sd(both[:, k], 3) for k in range(K)),
        mean_sd(both.mean(axis=1), 3),
        *(["–"] * 2 if paper is None else [f"{p:.3f}" for p in paper]),
        "–" if paper is None else f"{np.mean(paper):.3f}",
        *(["–"] * 2 if end is None else [f"{end[4]:.0f} %", f"{end[2]:.0f} %"]),
    ]


def plot(shares, per_record):
    """All shared parameters for each input, and each layer for the last input."""
    panels = [(scale, 0, f"all, x of {scale:g}") for scale in shares]
    panels += [(panels[-1][0], i + 1, layer) for i, layer in enumerate(LAYERS)]
    names = list(shares[panels[-1][0]])
    size = (1.15 * len(names), 1.25 * len(panels) + 0.8)
    figure = Figure(figsize=size, dpi=90, layout="constrained")
    grid = figure.subplots(len(panels), len(names), sharex=True, sharey=True)
    # From dark to light, so that the order shows without colours, too.
    colours = mpl.colormaps["cividis"](np.linspace(0, 1, 5))
    steps = per_record * np.arange(1, len(shares[panels[0][0]][names[0]]) + 1)
    for axes, (scale, part, label) in zip(grid, panels, strict=True):
        axes[0].set(ylabel=label, ylim=(0, 1), xticks=[])
        for ax, name in zip(axes, names, strict=True):
            found = shares[scale][name][:, part]
            ax.stackplot(steps, found.T, colors=colours)
    for ax, name in zip(grid[0], names, strict=True):
        ax.set_title(textwrap.fill(name, 11), fontsize="medium")
    fifths = [f"{low} to {low + 20} %" for low in range(0, 100, 20)]
    title = f"rAU of task B, {len(steps)} records in {steps[-1]} steps"
    patches = [Patch(color=colour) for colour in colours]
    figure.legend(patches, fifths, loc="outside lower center", ncols=5, title=title)
    return figure


if __name__ == "__main__":
    main()
