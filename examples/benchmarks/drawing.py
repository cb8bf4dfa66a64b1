"""The plot: ratios of the step times, and growth with K and with P."""

import functools
from pathlib import Path
from typing import Any

import problems
import report
import stats
from cases import GROWTH_K, METHODS
from matplotlib.figure import Figure
from problems import Size

# Okabe and Ito's colours, which colour-blind readers can tell apart; the marks differ,
# too.
SIDES = {
    "ours": {"color": "#0072B2", "marker": "o"},
    "theirs": {"color": "#D55E00", "marker": "s"},
}
DASHES = {"mtadam": "-", "mgda": "--"}


def draw(results: dict[str, Any], path: Path) -> None:
    cases = [c for c in report.in_order(results) if "skipped" not in c]
    cases = [c for c in cases if report.pick(c, "theirs", c["method"])]
    figure = Figure(figsize=(14, 12), dpi=100, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.3, 1))
    above, below = halves
    axes = above.subplots(1, 2)
    for ax, parts in zip(axes, ("abc", "ef"), strict=True):
        draw_ratios(ax, [c for c in cases if c["part"] in parts])
    grid = below.add_gridspec(1, 4)
    growth = [c for c in cases if c["part"] == "d"]
    panels = [(axis, quantity) for axis in "KP" for quantity in ("ms", "MB")]
    for i, (axis, quantity) in enumerate(panels):
        chosen = one_axis(growth, axis)
        draw_growth(below.add_subplot(grid[0, i]), chosen, axis, quantity)
    figure.savefig(path)


def label_of(case: dict[str, Any]) -> str:
    rows = "rows, " * (case["terms"] == "rows")
    return f"{rows}{report.label(case)}{case['num_terms']}"


def draw_ratios(ax: Any, cases: list[dict[str, Any]]) -> None:
    """One line for each case: the ratio and its interval."""
    for i, case in enumerate(reversed(cases)):
        ours, theirs = (
            report.pick(case, side, case["method"]) for side in ("ours", "theirs")
        )
        assert ours is not None
        assert theirs is not None
        found = stats.ratio(ours["rounds"], theirs["rounds"])
        ax.plot([found["low"], found["high"]], [i, i], color="#0072B2", lw=3)
        ax.plot(found["ratio"], i, "o", color="#0072B2", ms=6)
    ax.set_yticks(range(len(cases)), [label_of(case) for case in reversed(cases)])
    ax.axvline(1, color="black", lw=1)
    ax.set_xscale("log")
    ticks = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    low, high = ax.get_xlim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(
        title="Time of a training step, multiterm / PyTorch",
        xlabel="left of 1: multiterm is faster",
    )
    plain(ax, "both")


def one_axis(cases: list[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """The cases that differ in K alone, or in P alone: the most common other value."""

    def other(case: dict[str, Any]) -> Any:
        return case["size"]["width"] if axis == "K" else case["num_terms"]

    values = [other(case) for case in cases]
    common = max(values, key=values.count, default=None)
    return [case for case in cases if other(case) == common]


def draw_growth(ax: Any, cases: list[dict[str, Any]], axis: str, quantity: str) -> None:
    for method in dict.fromkeys(case["method"] for case in cases):
        for side, style in SIDES.items():
            points = []
            for case in cases:
                entry = report.pick(case, side, method)
                if case["method"] != method or entry is None:
                    continue
                x = case["num_terms"] if axis == "K" else parameters(case)
                y = entry["peak_mb"]
                if quantity == "ms":
                    y = 1e3 * stats.of_steps(entry["rounds"])[1]
                points.append((x, y))
            ax.plot(
                *zip(*sorted(points), strict=True),
                ls=DASHES.get(method, ":"),
                label=f"{METHODS[method]}, {report.NAMES[side]}",
                **style,
            )
    named = {"ms": "milliseconds per step", "MB": "peak memory, MB"}[quantity]
    label = "number of terms K" if axis == "K" else "number of parameters P"
    if cases:
        fixed = parameters(cases[0]) / 1e6 if axis == "K" else cases[0]["num_terms"]
        label += f" (MLP, P = {fixed:.2g}M)" if axis == "K" else f" (MLP, K = {fixed})"
        ax.set(xscale="log", yscale="log")
        ax.legend(fontsize=8, frameon=False)
    if axis == "K" and cases:
        ax.set_xticks(GROWTH_K, [str(value) for value in GROWTH_K])
        ax.minorticks_off()
    ax.set(title=named, xlabel=label)
    plain(ax, "both")


def parameters(case: dict[str, Any]) -> int:
    return counted(case["model"], Size(**case["size"]), case["num_terms"])


@functools.cache
def counted(model: str, size: Size, num_terms: int) -> int:
    # Kept, since to draw ten million numbers for every point takes seconds.
    return problems.count(problems.make_problem(model, size, num_terms)[0])


def plain(ax: Any, grid: str) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, alpha=0.3)
