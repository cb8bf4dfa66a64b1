"""What the default does on every problem, from the comparison's results.

Where ``report`` has a row for each method, here each problem has its row, since what
counts is whether one method serves them all.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from methods import DEFAULTS
from report import (
    BETTER,
    LEVEL,
    WORSE,
    by_seed,
    count,
    markdown,
    ratio,
    rounded,
    seeds_mean_sd,
    static_scores,
    verdict,
)

DEFAULT = "balanced"
EQUAL, SAME_TIME, POOL = OPPONENTS = (
    "equal weights",
    "static, same time",
    "whole pool",
)
WORDS = {BETTER: "better", LEVEL: "tied", WORSE: "worse"}


def opponents(found, record):
    """Scores by seed of what a method is held against, by name."""
    static = found["static"]
    first = len(static["equal"]["validation"])
    return {
        EQUAL: by_seed(static["equal"]),
        SAME_TIME: static_scores(static, int(record["ratio"] * first))[0],
        POOL: static_scores(static, first + static["pool"])[0],
    }


def against(own, other):
    """The ratio of the scores with its interval, and the verdict in words."""
    if not (np.isfinite(own).all() and np.isfinite(other).all()):
        return WORDS[verdict(own, other)]
    middle, low, high = (significant(x) for x in ratio(own, other))
    return f"{middle} ({low} to {high}), {WORDS[verdict(own, other)]}"


def significant(value):
    """Two significant digits, or three from 1 on."""
    if not math.isfinite(value):
        return "∞"
    return rounded(value, value, 3 if value >= 1 else 2)


def each_problem(results, name):
    """One row a problem: scores, and the method's ratio to each opponent."""
    rows = []
    for found in results.values():
        record, settings = found["methods"][name], found["settings"]
        own, others = by_seed(record), opponents(found, record)
        rows.append(
            [
                f"{settings['name']} (K = {settings['terms']})",
                seeds_mean_sd(others[EQUAL]),
                seeds_mean_sd(others[POOL]),
                seeds_mean_sd(own),
                *(against(own, others[other]) for other in OPPONENTS),
            ]
        )
    head = ["problem", EQUAL, "best of 105 static trials", name]
    return markdown([*head, *(f"over {other}" for other in OPPONENTS)], rows)


def each_method(results):
    """One row a method: on how many problems it was better, tied, worse."""
    rows = []
    for name in methods_of(results):
        records = [found["methods"][name] for found in results.values()]
        pairs = [
            (by_seed(record), opponents(found, record))
            for found, record in zip(results.values(), records, strict=True)
        ]
        counts = (
            count([verdict(own, others[other]) for own, others in pairs])
            for other in OPPONENTS
        )
        default = [by_seed(found["methods"][DEFAULT]) for found in results.values()]
        beside = zip((own for own, _ in pairs), default, strict=True)
        rival = "" if name == DEFAULT else count([verdict(*both) for both in beside])
        times = [record["ratio"] for record in records]
        time = f"{np.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
        rows.append([name, *counts, rival, *mean_and_worst(results, name), time])
    head = ["method", *(f"against {other}" for other in (*OPPONENTS, DEFAULT))]
    head += ["mean ratio to the pool", "worst", "training time relative to Adam"]
    return markdown(head, rows)


def mean_and_worst(results, name):
    """Of the problems' ratios of the score to that of the whole pool."""
    ratios = []
    for found in results.values():
        record = found["methods"][name]
        own, pool = by_seed(record), opponents(found, record)[POOL]
        if not np.isfinite(own).all():
            return ["diverged", "diverged"]
        ratios.append(own.mean() / pool.mean())
    return [f"{np.exp(np.mean(np.log(ratios))):.2f}", significant(max(ratios))]


def all_scores(results):
    """Test scores of the default and its variants, one row a problem."""
    names = [name for name in methods_of(results) if name in (EQUAL, *DEFAULTS)]
    rows = []
    for found in results.values():
        scores = (seeds_mean_sd(by_seed(found["methods"][name])) for name in names)
        undone = found["static"]["undone"]
        known = seeds_mean_sd(by_seed(undone)) if undone else ""
        rows.append([found["settings"]["name"], *scores, known])
    return markdown(
        ["problem", *names, "correct weights (not known in practice)"], rows
    )


def by_rate(results):
    """Validation score at each rate over the best one of the row."""
    rates = next(iter(results.values()))["settings"]["rates"]
    rows = []
    for found in results.values():
        records = {EQUAL: found["static"]["equal"], DEFAULT: found["methods"][DEFAULT]}
        for name, record in records.items():
            scores = record["validation"]
            scores = [math.inf if s is None else s for s in scores]
            best = min(scores)
            cells = (significant(s / best) for s in scores)
            rows.append([found["settings"]["name"], name, *cells])
    return markdown(["problem", "method", *(f"{rate:g}" for rate in rates)], rows)


def methods_of(results):
    """Those that all problems have."""
    first = next(iter(results.values()))["methods"]
    every = [set(found["methods"]) for found in results.values()]
    return [name for name in first if all(name in methods for methods in every)]


def tables(parts, apart):
    counted = {name: found for part in parts.values() for name, found in part.items()}
    found = {f"Each problem, {w}": each_problem(p, DEFAULT) for w, p in parts.items()}
    found |= {f"Each method, {w}": each_method(p) for w, p in parts.items()}
    _, *unseen = parts.values()
    if unseen:
        apart_of = {name: found for part in unseen for name, found in part.items()}
        found["Each method, all problems it was not chosen on"] = each_method(apart_of)
    found |= {f"Scores, {w}": all_scores(p) for w, p in parts.items()}
    if apart:
        found["Scores where terms are one objective"] = all_scores(apart)
    return found | {"Learning rates": by_rate(counted)}


SHOWN = {
    "Adam on the sum": ("o", "tab:gray", EQUAL),
    "static weights tuned for the same time": ("|", "black", SAME_TIME),
    "balanced": ("D", "tab:blue", None),
}
TICKS = [0.5, 0.7, 1, 1.5, 2, 3, 5, 10]


def ratios(results, other):
    """By problem, the default's score, or another one's, over that of the pool."""
    found = []
    for one in results.values():
        record = one["methods"][DEFAULT]
        others = opponents(one, record)
        own = by_seed(record) if other is None else others[other]
        found.append(ratio(own, others[POOL]))
    return found


def draw_summary(results):
    """One row for each way to train, one mark for each problem."""
    figure = Figure(figsize=(8, 2.1), dpi=110, layout="constrained")
    ax = figure.subplots()
    for place, (marker, color, other) in enumerate(SHOWN.values()):
        middle = np.array(ratios(results, other))[:, 0]
        mean = np.exp(np.mean(np.log(middle)))
        ax.plot(middle, np.full_like(middle, -place), marker, color=color, alpha=0.5)
        ax.plot(mean, -place - 0.32, "^", color="black")
        ax.text(mean * 1.04, -place - 0.42, f"mean {mean:.2f}", fontsize=9)
    ax.axvline(1, color="tab:green", linewidth=1)
    labels = ["Adam on the sum", "static weights,\ntuned as long", "balanced,\nuntuned"]
    ax.set_yticks([0, -1, -2], labels)
    ax.set_ylim(-2.7, 0.4)
    ax.set_xscale("log")
    ax.set_xlabel("test error over that of the best of 105 static weights, 24 problems")
    ax.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    ax.minorticks_off()
    return figure


def draw(results):
    """One row a problem: scores over that of the best of the whole pool."""
    figure = Figure(
        figsize=(8, 1.2 + 0.3 * len(results)), dpi=110, layout="constrained"
    )
    ax = figure.subplots()
    for label, (marker, color, other) in SHOWN.items():
        points = ratios(results, other)
        middle, low, high = np.array(points).T
        places = np.arange(len(points))[::-1]
        ax.errorbar(
            middle,
            places,
            xerr=[middle - low, high - middle],
            fmt=marker,
            color=color,
            label=label,
            markersize=9 if marker == "|" else 6,
            elinewidth=1,
        )
    ax.axvline(1, color="tab:green", linewidth=1)
    names = [found["settings"]["name"] for found in results.values()]
    ax.set_yticks(range(len(names))[::-1], names)
    ax.set_xscale("log")
    ax.set_xlabel("test error over that of the best of 105 trials of static weights")
    ax.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    ax.minorticks_off()
    ax.grid(axis="y", linewidth=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def write(parts, apart, folder):
    """Saves ``default.md`` and two pictures where every problem has the default.

    ``parts`` are groups of problems by what they are called, ``apart`` those that count
    nowhere.
    """
    counted = {name: found for part in parts.values() for name, found in part.items()}
    if not counted or not all(DEFAULT in f["methods"] for f in counted.values()):
        return
    found = tables(parts, apart)
    text = "\n\n".join(f"## {name}\n\n{table}" for name, table in found.items())
    (folder / "default.md").write_text(text + "\n", encoding="utf-8")
    draw(counted).savefig(folder / "default.png")
    draw_summary(counted).savefig(folder / "default_summary.png")
