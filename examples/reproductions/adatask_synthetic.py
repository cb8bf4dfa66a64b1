"""AdaTask, Table 2 and Fig. 2: two regressions, one of which dominates.

``y^k(x) = W_1^k x + W_2^k x^2 + W_3 x^3 + noise`` from 250 inputs to 100 outputs,
with ``W^A ~ N(1, 1)`` and ``W^B, W_3 ~ N(10, 10)``, so that B has the larger gradients,
and a shared network of four layers (ELU) and a linear head for each task, RMSProp.
Reported: the root mean square error of each task on test data, divided by the standard
deviation of its targets, and how many shared parameters a task dominates (rAU).

Equal weights at two and four times the learning rate are controls: AdaTask's steps are
about twice as long, since each task's step is normalised alone.

The paper leaves open: how x is drawn, the sizes of layers, data and batch, the learning
rate and the number of steps, and by what the error is normalised. Here: x standard
normal, layers of 100, 10,000 rows for training and 1,000 for the test, batches of 100,
learning rate 1e-3, and targets in units of the standard deviation of task A's.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import arguments, console, mean_sd, save, show
from matplotlib.figure import Figure
from rich.progress import track

import multiterm_optax as mt

K, INPUTS, OUTPUTS, WIDTH, LAYERS = 2, 250, 100, 100, 4
RATE, DECAY = 1e-3, 0.99
PAPER = {
    "equal weights": (0.2172, 0.0113),
    "GradNorm": (0.1134, 0.0226),
    "uncertainty": (0.2032, 0.0100),
    "PCGrad": (0.2221, 0.0155),
    "CAGrad": (0.1495, 0.0140),
    "AdaTask": (0.0704, 0.0417),
    "layer-wise AdaTask": (0.0989, 0.0285),
}


class SharedRMSState(NamedTuple):
    nu: Any


def scale_by_shared_rms():
    """RMSProp of the summed gradient, but with the terms still apart: K to K."""

    def init(params):
        return SharedRMSState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, **extra_args):
        nu = jax.tree.map(
            lambda v, g: DECAY * v + (1 - DECAY) * jnp.square(g.sum(axis=0)),
            state.nu,
            updates,
        )
        scaled = jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + 1e-8), updates, nu)
        return scaled, SharedRMSState(nu)

    return optax.GradientTransformationExtraArgs(init, update)


def shared(weighting, rate=RATE):
    """A weighting before RMSProp, with dominance recorded."""
    return mt.chain(
        mt.reweight(weighting, K),
        scale_by_shared_rms(),
        mt.metrics.track_dominance(K),
        mt.sum_terms(),
        optax.scale_by_learning_rate(rate),
    )


def adatask():
    rms = optax.scale_by_rms(decay=DECAY, eps=1e-8, eps_in_sqrt=False)
    return mt.chain(
        mt.per_term(rms, K),
        mt.metrics.track_dominance(K),
        mt.sum_terms(),
        optax.scale_by_learning_rate(RATE),
    )


def methods():
    ones = mt.constant(jnp.ones(K))
    return {
        "equal weights": shared(ones),
        "equal weights, rate x 2": shared(ones, 2 * RATE),
        "equal weights, rate x 4": shared(ones, 4 * RATE),
        "GradNorm": shared(mt.gradnorm()),
        "uncertainty": shared(mt.uncertainty()),
        "PCGrad": shared(mt.pcgrad(jax.random.key(0))),
        "CAGrad": shared(mt.cagrad()),
        "AdaTask": adatask(),
        "layer-wise AdaTask": mt.ladatask_rmsprop(RATE, K, decay=DECAY),
    }


def make_data(seed, rows):
    """Inputs and targets [rows, K, outputs]."""
    rng = np.random.default_rng(seed)

    def matrix(mean, spread):
        return rng.normal(mean, spread, (INPUTS, OUTPUTS))

    first = [matrix(1, 1), matrix(10, 10)]
    second = [matrix(1, 1), matrix(10, 10)]
    third = matrix(10, 10)
    x = rng.normal(size=(rows, INPUTS))
    noise = rng.normal(0, 0.1, (rows, K, OUTPUTS))
    y = np.stack(
        [x @ a + x**2 @ b + x**3 @ third for a, b in zip(first, second, strict=True)],
        axis=1,
    )
    y = y + noise
    return x.astype(np.float32), (y / y[:, 0].std()).astype(np.float32)


def init_params(seed):
    sizes = [(INPUTS, WIDTH)] + [(WIDTH, WIDTH)] * (LAYERS - 1) + [(WIDTH, OUTPUTS)] * K
    names = [f"layer {i}" for i in range(LAYERS)] + ["head A", "head B"]
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
    for i in range(LAYERS):
        layer = params[f"layer {i}"]
        x = jax.nn.elu(x @ layer["w"] + layer["b"])
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
        return (params, state), layer_shares(state)

    params: Any = init_params(seed)
    keys = jax.random.split(jax.random.key(seed), records * per_record)
    keys = keys.reshape(records, per_record)
    (params, _), shares = jax.lax.scan(record, (params, tx.init(params)), keys)
    return params, shares


def layer_shares(state):
    """[layers + 1, 5]: all shared parameters first, then each layer's; or nothing."""
    try:
        rau: Any = mt.metrics.dominance(state)
    except ValueError:  # not recorded
        return jnp.zeros((0,))
    layers = [rau[f"layer {i}"] for i in range(LAYERS)]
    each = [mt.metrics.dominance_shares(part)[1] for part in [layers, *layers]]
    return jnp.stack(each)


def main():
    args = arguments(__doc__, seeds=3)
    records, per_record, rows, seeds = (100, 100, 10_000, args.seeds)
    if args.fast:
        records, per_record, rows, seeds = 5, 4, 200, 1
    errors, shares = {name: [] for name in methods()}, {}
    jobs = [(seed, name) for seed in range(seeds) for name in errors]
    for seed, name in track(jobs, "training", console=console):
        x, y = make_data(seed, rows + 1000)
        data = jnp.asarray(x[1000:]), jnp.asarray(y[1000:])
        run = jax.jit(partial(train, methods()[name], records, per_record, 100))
        params, found = run(data, seed)
        test = losses_fn(params, (jnp.asarray(x[:1000]), jnp.asarray(y[:1000])))
        spread = y[:1000].std(axis=(0, 2))
        errors[name].append((np.sqrt(test) / spread).tolist())
        if found.size and seed == 0:
            shares[name] = np.asarray(found)

    table_rows = []
    for name, found in errors.items():
        both = np.array(found)
        paper = PAPER.get(name)
        dominated = shares.get(name)
        table_rows.append(
            [
                name,
                *(mean_sd(both[:, k], 3) for k in range(K)),
                mean_sd(both.mean(axis=1), 3),
                *(["–"] * 3 if paper is None else [f"{p:.3f}" for p in paper])[:2],
                "–" if paper is None else f"{np.mean(paper):.3f}",
                "–" if dominated is None else f"{100 * dominated[-1, 0, 4]:.0f} %",
                "–" if dominated is None else f"{100 * dominated[-1, 0, 2]:.0f} %",
            ]
        )
    columns = ["method", "A", "B", "mean", "paper: A", "B", "mean"]
    columns += ["rAU of B over 80 %", "40 to 60 %"]
    table = show(
        f"Normalised RMSE after {records * per_record} steps, {seeds} seeds",
        columns,
        table_rows,
    )
    figure = Figure(figsize=(14, 9), dpi=90, layout="constrained")
    grid = figure.subplots(LAYERS + 1, len(shares), sharex=True, sharey=True)
    steps = per_record * np.arange(1, records + 1)
    greens = ["#1a9850", "#a6d96a", "#ffffbf", "#fdae61", "#d73027"]
    for column, (name, found) in zip(grid.T, shares.items(), strict=True):
        for part, ax in enumerate(column):
            ax.stackplot(steps, found[:, part].T, colors=greens)
            ax.set(ylim=(0, 1))
            if part == 0:
                ax.set_title(name, fontsize="small")
    for part, ax in enumerate(grid[:, 0]):
        ax.set_ylabel("all layers" if part == 0 else f"layer {part}")
    figure.suptitle("Share of parameters by rAU of task B: green A's, red B's")
    results = {"errors": errors, "shares": {n: s.tolist() for n, s in shares.items()}}
    save(args, "adatask_synthetic", figure, [table], results)


if __name__ == "__main__":
    main()
