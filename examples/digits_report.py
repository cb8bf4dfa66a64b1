"""Tables and the figure of ``digits.py``."""

from itertools import pairwise

import numpy as np
from digits_data import LIGHT
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

# Okabe and Ito's colours, which colour-blind readers can tell apart; the dashes show
# what lies beneath when two methods agree.
STYLES = {
    "Adam, correct weights": {"color": "#000000"},
    "Adam, weighted sum": {"color": "#D55E00"},
    "AdaTask": {"color": "#009E73"},
    "MTAdam": {"color": "#56B4E9"},
    "balanced": {"color": "#0072B2"},
    "Adam, tuned weights": {"color": "#CC79A7", "ls": (0, (4, 2))},
}


def summarize(runs, lrs):
    """One row for each method at its learning rate; (mean, SD) of each column."""
    rows = []
    for name, lr in lrs.items():
        own = runs[name, lr]
        final = 100 * np.array([run.curve[-1] for run in own])
        columns = {
            "accuracy": final[:, 0],
            "worst class": np.nanmin(final[:, 1:], axis=1),
            f"class {LIGHT}": final[:, 1 + LIGHT],
            "seconds": np.array([run.seconds for run in own]),
        }
        stats = {key: (float(v.mean()), float(v.std())) for key, v in columns.items()}
        rows.append({"method": name, "lr": lr, **stats})
    return rows


def make_table(rows, title, seeds):
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, padding=0, pad_edge=False
    )
    table.add_column("method", no_wrap=True)
    for column in list(rows[0])[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [row["method"], f"{row['lr']:g}"]
        for column, (mean, spread) in list(row.items())[2:]:
            digits = 2 if column == "seconds" else 1
            cell = f"{mean:.{digits}f}"
            cells.append(cell + (f" ± {spread:.{digits}f}" if seeds > 1 else ""))
        table.add_row(*cells)
    return table


def draw(runs, args):
    """Accuracy and the lightest class's recall by step; accuracy by learning rate."""
    sweep = len(args.lrs) > 1
    figure = Figure(figsize=(13 if sweep else 9, 4), dpi=100, layout="constrained")
    left, middle, *right = figure.subplots(1, 3 if sweep else 2)
    steps = np.linspace(0, args.steps, args.evaluations + 1)
    curves = {
        name: np.array([run.curve for run in runs[name, args.lr]]) for name in STYLES
    }
    draw_panel(left, steps, {name: c[..., 0] for name, c in curves.items()}, 40)
    draw_panel(middle, steps, {name: c[..., 1 + LIGHT] for name, c in curves.items()})
    left.set(title=f"Test accuracy (%) at rate {args.lr:g}", xlabel="step")
    middle.set(title=f"Recall of class {LIGHT}, the lightest (%)", xlabel="step")
    for ax in right:
        final = {
            name: np.array(
                [[run.curve[-1, 0] for run in runs[name, lr]] for lr in args.lrs]
            )
            for name in STYLES
        }
        ax.set_xscale("log")
        draw_panel(ax, args.lrs, {name: f.T for name, f in final.items()}, 40)
        ax.set(title="Test accuracy (%) after the last step", xlabel="learning rate")
    figure.savefig(args.out)


def draw_panel(ax, x, values, bottom=0):
    """Lines of means, bands of one standard deviation, and labels at the ends."""
    ends = {}
    for name, of_seeds in values.items():
        mean, spread = 100 * of_seeds.mean(axis=0), 100 * of_seeds.std(axis=0)
        ax.plot(x, mean, lw=1.8, **STYLES[name])
        low, high = np.clip([mean - spread, mean + spread], 0, 100)
        ax.fill_between(x, low, high, color=STYLES[name]["color"], alpha=0.15, lw=0)
        ends[name] = mean[-1]
    # Labels that would overlap are moved apart, first down, then up from the bottom.
    gap = (100 - bottom) * 0.06
    order = sorted(ends, key=ends.__getitem__, reverse=True)
    for above, name in pairwise(order):
        ends[name] = min(ends[name], ends[above] - gap)
    lowest = bottom
    for name in reversed(order):
        lowest = ends[name] = max(ends[name], lowest)
        lowest += gap
    for name, height in ends.items():
        ax.annotate(
            name,
            (1.02, height),
            xycoords=("axes fraction", "data"),
            color=STYLES[name]["color"],
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    ax.set(xlim=(x[0], x[-1]), ylim=(bottom, 100 + gap / 3))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
