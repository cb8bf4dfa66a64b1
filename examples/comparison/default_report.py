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
    name_of,
    ratio,
    rounded,
    seeds_mean_sd,
    static_scores,
    title,
    verdict,
)

DEFAULT = "balanced"
EQUAL, SAME_TIME, POOL = OPPONENTS = (
    "equal weights",
    "static, same time",
    "whole pool",
)
BEST = "best of 105"  # what tables call the whole pool
# Columns that share a table: no more than a page has room for.
BESIDE = {
    "slow norms": (EQUAL, "balanced", "balanced, frozen", "mtadam, slow norms"),
    "slow norms and projections": (
        "balanced, then upgrad",
        "balanced, shared RMS, upgrad",
        "balanced, upgrad, adatask",
    ),
    "losses": ("by_loss", "by_loss, upgrad"),
    "adatask": (
        "upgrad, adatask",
        "by_loss, upgrad, adatask",
        "by_loss, pcgrad, adatask",
    ),
    "another optimizer": ("equal weights, muon", "balanced, muon"),
}
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


def below_their_part(parts, line_of):
    """The lines of all problems, each part's below its name."""
    rows = []
    for part, results in parts.items():
        lines = [line_of(found) for found in results.values()]
        rows += [[f"**{part.capitalize()}**", *[""] * (len(lines[0]) - 1)], *lines]
    return rows


def scores_of(parts, name):
    """One row a problem: the scores of a method and of its opponents."""

    def line(found):
        record = found["methods"][name]
        others = opponents(found, record)
        scores = others[EQUAL], others[POOL], by_seed(record)
        return [title(found), *map(seeds_mean_sd, scores)]

    return markdown(["problem", EQUAL, BEST, name], below_their_part(parts, line))


def ratios_of(parts, name):
    """One row a problem: the scores of a method over those of each opponent."""

    def line(found):
        record = found["methods"][name]
        own, others = by_seed(record), opponents(found, record)
        return [title(found), *(against(own, others[other]) for other in OPPONENTS)]

    head = ["problem", *(f"over {other}" for other in (EQUAL, SAME_TIME, BEST))]
    return markdown(head, below_their_part(parts, line))


def counts(results):
    """One row a method: on how many problems it was better, tied, worse."""
    default = [by_seed(found["methods"][DEFAULT]) for found in results.values()]
    rows = []
    for name in methods_of(results):
        records = [found["methods"][name] for found in results.values()]
        pairs = [
            (by_seed(record), opponents(found, record))
            for found, record in zip(results.values(), records, strict=True)
        ]
        counted = (
            count([verdict(own, others[other]) for own, others in pairs])
            for other in OPPONENTS
        )
        beside = zip((own for own, _ in pairs), default, strict=True)
        rival = "" if name == DEFAULT else count([verdict(*both) for both in beside])
        rows.append([name, *counted, rival])
    against_each = (EQUAL, SAME_TIME, BEST, f"`{DEFAULT}`")
    return markdown(["method", *(f"against {o}" for o in against_each)], rows)


def sizes(parts, names):
    """One row a method, by part: its mean ratio to the pool, and its worst one."""
    found = {
        name: [mean_and_worst(part, name) for part in parts.values()] for name in names
    }
    means, worst = (
        [[name, *(pair[which] for pair in pairs)] for name, pairs in found.items()]
        for which in (0, 1)
    )
    head = ["method", *parts]
    return markdown(head, means), markdown(head, worst)


def times(parts, names):
    """One row a method: its training time over Adam's, by part."""
    rows = []
    for name in names:
        row = [name]
        for part in parts.values():
            found = [problem["methods"][name]["ratio"] for problem in part.values()]
            row.append(f"{np.median(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        rows.append(row)
    return markdown(["method", *parts], rows)


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


def all_scores(parts):
    """Test scores of the default and its variants, by the names of the tables."""
    every = {name: found for part in parts.values() for name, found in part.items()}
    done = [name for name in methods_of(every) if name in (EQUAL, *DEFAULTS)]
    shared = {what: [n for n in names if n in done] for what, names in BESIDE.items()}
    shown = {name for names in shared.values() for name in names}
    shared["others"] = [name for name in done if name not in shown]

    def scores_in(names, last):
        def line(found):
            undone = found["static"]["undone"]
            known = [seeds_mean_sd(by_seed(undone)) if undone else ""] if last else []
            scores = (seeds_mean_sd(by_seed(found["methods"][n])) for n in names)
            return [name_of(found), *scores, *known]

        known = ["correct weights (not known in practice)"] if last else []
        return markdown(["problem", *names, *known], below_their_part(parts, line))

    return {
        what: scores_in(names, what == "another optimizer")
        for what, names in shared.items()
        if names
    }


def by_rate(results):
    """Validation score at each rate over the best one of the row."""
    rates = next(iter(results.values()))["settings"]["rates"]
    rows = []
    for found in results.values():
        records = {EQUAL: found["static"]["equal"], DEFAULT: found["methods"][DEFAULT]}
        problem = name_of(found)
        for name, record in records.items():
            scores = record["validation"]
            scores = [math.inf if s is None else s for s in scores]
            best = min(scores)
            cells = (significant(s / best) for s in scores)
            rows.append([problem, name, *cells])
            problem = ""  # said once
    return markdown(["problem", "method", *(f"{rate:g}" for rate in rates)], rows)


def methods_of(results):
    """Those that all problems have."""
    first = next(iter(results.values()))["methods"]
    every = [set(found["methods"]) for found in results.values()]
    return [name for name in first if all(name in methods for methods in every)]


def tables(parts, apart):
    counted = {name: found for part in parts.values() for name, found in part.items()}
    found = {
        "Scores of the default": scores_of(parts, DEFAULT),
        "Ratios of the default": ratios_of(parts, DEFAULT),
        "Learning rates": by_rate(counted),
    }
    _, *unseen = parts.values()
    apart_of = {name: found for part in unseen for name, found in part.items()}
    together = {"all held out": apart_of} if unseen else {}
    every = (parts | together).items()
    found |= {f"Each method, {part}": counts(some) for part, some in every}
    names = methods_of(counted)
    found["Mean ratio to the pool"], found["Worst ratio"] = sizes(
        parts | together, names
    )
    found["Training time relative to Adam"] = times(parts, names)
    also = {"one objective": apart} if apart else {}
    scores = all_scores(parts | also)
    return found | {f"Scores, {what}": table for what, table in scores.items()}


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
        figsize=(7, 1.2 + 0.25 * len(results)), dpi=125, layout="constrained"
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
    names = [name_of(found) for found in results.values()]
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
