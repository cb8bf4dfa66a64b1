"""SoftAdapt, Fig. 2 and supplement: Rosenbrock's and Beale's functions in parts.

Gradient descent on a function split into its squares, with weights by SoftAdapt
(original and loss-weighted) and with fixed weights, by a fixed step and by Barzilai
and Borwein's. The paper's best figure, 43.31 % fewer steps than "gradient descent", is
for loss-weighted SoftAdapt with the fixed step. SoftAdapt's weights sum to 1, so that
plain gradient descent with the same step size may mean weights of one half, or of one;
both are shown, since between them lies a factor of two in the step.

The paper leaves open: the start, the number of losses kept, when the minimum counts as
reached, and which mean weights the losses. Here: 200 starts, five losses, a value of
1e-6, and both readings (Alg. 1's mean of the losses, Eq. 4's current loss). Steps, and
their bounds for Barzilai and Borwein, are the paper's: 1e-3, in [1e-4, 1e-1].
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, console, save, show
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rich.progress import track

import multiterm_optax as mt

REACHED = 1e-6
# A marker and a line for each weighting, beside its colour.
LOOKS = [
    ("o", "-"),
    ("s", "-"),
    ("^", "--"),
    ("D", "-."),
    ("v", ":"),
    ("x", (0, (5, 1, 1, 1))),
]


def rosenbrock(p):
    x, y = p
    return jnp.stack([(1 - x) ** 2, 100 * (y - x**2) ** 2])


def beale(p):
    x, y = p
    parts = ((1, 1.5), (2, 2.25), (3, 2.625))
    return jnp.stack([(c - x + x * y**n) ** 2 for n, c in parts])


# Function, box of the starts.
FUNCTIONS = {
    "Rosenbrock": (rosenbrock, ((-0.5, 1.5), (-0.5, 1.5))),
    "Beale": (beale, ((0.0, 3.5), (-0.5, 1.0))),
}


def weightings(num_terms):
    softadapt = partial(mt.softadapt, normalized=False, eps=1e-8)
    return {
        "weights 1 / K": mt.equal(),
        "weights 1": mt.constant(jnp.ones(num_terms)),
        "SoftAdapt": softadapt(beta=0.1),
        "loss-weighted, mean": softadapt(beta=0.1, loss_weighted="mean"),
        "loss-weighted, current": softadapt(beta=0.1, loss_weighted="current"),
        "loss-weighted, beta -0.1": softadapt(beta=-0.1, loss_weighted="mean"),
    }


class BarzilaiBorweinState(NamedTuple):
    params: Any
    updates: Any
    first: jax.Array


def barzilai_borwein(start, low, high):
    """Steps of length dx.dx / dx.dg, within bounds; the first one is ``start``."""

    def init(params):
        zeros = jnp.zeros_like(params)
        return BarzilaiBorweinState(zeros, zeros, jnp.array(True))

    def update(updates, state, params: Any = None):
        moved, turned = params - state.params, updates - state.updates
        curvature = moved @ turned
        safe = jnp.where(curvature == 0, 1, curvature)
        length = jnp.where(curvature == 0, high, jnp.abs(moved @ moved / safe))
        length = jnp.where(state.first, start, jnp.clip(length, low, high))
        new = BarzilaiBorweinState(params, updates, jnp.array(False))
        return -length * updates, new

    return optax.GradientTransformation(init, update)


STEPS = {
    "fixed": optax.sgd(1e-3),
    "Barzilai-Borwein": barzilai_borwein(1e-3, 1e-4, 1e-1),
}


def steps_needed(tx, function, most, start):
    """Steps until the function is at most REACHED; ``most`` if that never comes."""
    grad_fn = mt.value_and_term_grads(function)

    def unfinished(carry):
        params, _, count = carry
        value = function(params).sum()
        return (value > REACHED) & jnp.isfinite(value) & (count < most)

    def step(carry):
        params, state, count = carry
        losses, grads = grad_fn(params)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, count + 1

    params, _, count = jax.lax.while_loop(unfinished, step, (start, tx.init(start), 0))
    return jnp.where(function(params).sum() <= REACHED, count, most)


def main():
    args = arguments(__doc__)
    starts, most = (4, 2000) if args.short else (200, 200_000)
    tables, counts = [], {}
    jobs = [(f, s, w) for f in FUNCTIONS for s in STEPS for w in weightings(2)]
    for name, step, weighting in track(jobs, "descending", console=console):
        function, box = FUNCTIONS[name]
        num_terms = jax.eval_shape(function, jnp.zeros(2)).shape[0]
        tx = mt.chain(
            mt.reweight(weightings(num_terms)[weighting], num_terms),
            mt.sum_terms(),
            STEPS[step],
        )
        low, high = np.transpose(box)
        points = np.random.default_rng(0).uniform(low, high, (starts, 2))
        run = jax.jit(jax.vmap(partial(steps_needed, tx, function, most)))
        counts[name, step, weighting] = np.asarray(run(points.astype(np.float32)))

    for name in FUNCTIONS:
        rows = []
        for weighting in weightings(2):
            row = [weighting]
            for step in STEPS:
                found = counts[name, step, weighting]
                done = found < most
                row.append(f"{np.median(found):.0f}" if done.mean() > 0.5 else "–")
                for base in ("weights 1 / K", "weights 1"):
                    other = counts[name, step, base]
                    both = done & (other < most)
                    row.append(
                        f"{100 * np.median(1 - found[both] / other[both]):+.0f} %"
                        if both.any()
                        else "–"
                    )
                row.append(f"{100 * done.mean():.0f} %")
            rows.append(row)
        columns = ["weights"]
        for step in STEPS:
            columns += [f"{step}: steps", "fewer than 1 / K", "than 1", "reached"]
        title = f"{name}: median steps to {REACHED:g} over {starts} starts"
        tables.append(show(title, columns, rows))
    figure = Figure(figsize=(11, 6.5), dpi=100, layout="constrained")
    grid = figure.subplots(len(FUNCTIONS), len(STEPS))
    for axes, name in zip(grid, FUNCTIONS, strict=True):
        for ax, step in zip(axes, STEPS, strict=True):
            looks = zip(weightings(2), COLOURS, LOOKS, strict=False)
            for place, (weighting, colour, (marker, style)) in enumerate(looks):
                found = np.sort(counts[name, step, weighting])
                share = np.arange(1, starts + 1) / starts
                ax.step(
                    found,
                    share,
                    color=colour,
                    label=weighting,
                    where="post",
                    linestyle=style,
                    marker=marker,
                    markersize=6,
                    fillstyle="none",
                    # Not at the same heights, since some of the lines coincide.
                    markevery=(place * starts // 30, max(starts // 5, 1)),
                )
            ax.set(xscale="log", title=f"{name}, {step} step", xlabel="steps")
            every = [counts[name, step, weighting] for weighting in weightings(2)]
            low, high = np.quantile(every, [0.01, 0.99])  # few are faster or slower
            ax.set_xlim(max(low, 1), 1.1 * high)
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_ylabel("share of the starts")
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3, frameon=False)
    results = {", ".join(key): found.tolist() for key, found in counts.items()}
    save(args, "softadapt_functions", figure, tables, results)


if __name__ == "__main__":
    main()
