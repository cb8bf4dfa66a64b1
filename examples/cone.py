"""Draws what a conflict is: two gradients, their mean, and what harms neither loss.

    python examples/cone.py --out docs/_static/cone.png

The shaded cone holds the directions along which both losses fall. The mean of two
gradients of very different length lies outside of it, and UPGrad's direction inside.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import multiterm_optax as mt

GRADIENTS = np.array([[2.1, 0.3], [-0.75, 0.6]], np.float32)


def direction(weighting):
    """The weighted sum of the gradients."""
    rows = jnp.asarray(GRADIENTS)
    weights, _ = weighting.update(rows @ rows.T, weighting.init(len(rows)))
    return np.asarray(weights @ rows)


def draw():
    figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
    ax = figure.subplots()
    x, y = np.meshgrid(np.linspace(-1.4, 2.4, 400), np.linspace(-0.3, 1.7, 300))
    inside = np.all([gx * x + gy * y >= 0 for gx, gy in GRADIENTS], axis=0)
    ax.contourf(x, y, inside, levels=[0.5, 1.5], colors=["0.9"])
    arrows = {
        "gradient 1": (GRADIENTS[0], "black", "-"),
        "gradient 2": (GRADIENTS[1], "black", "-"),
        "mean: loss 2 rises": (direction(mt.equal()), "tab:orange", "--"),
        "upgrad: both fall": (direction(mt.upgrad()), "tab:blue", "-"),
    }
    for label, (arrow, color, style) in arrows.items():
        ax.annotate(
            "",
            arrow,
            (0, 0),
            arrowprops={"arrowstyle": "-|>", "color": color, "linestyle": style},
        )
        ax.text(arrow[0], arrow[1] + 0.05, label, color=color, ha="center")
    ax.text(0.55, 1.5, "both losses fall", color="0.4", ha="center")
    ax.set_xlim(-1.4, 2.4)
    ax.set_ylim(-0.3, 1.7)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return figure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("cone.png"), metavar="FILE")
    draw().savefig(parser.parse_args().out)


if __name__ == "__main__":
    main()
