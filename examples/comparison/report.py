"""The tables and the picture of the comparison, from its results."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from scipy import stats

POOL = "static weights, whole pool"
DRAWS = 20_000  # of the seeds, for an interval
BETTER, LEVEL, WORSE = -1, 0, 1
MARKS = {BETTER: " **+**", LEVEL: "", WORSE: " −"}
WIDTH = 3  # problems side by side in a table that a page has room for
KINDS = {
    "classification": ("digits", "adult", "multimnist"),
    "regression": ("adatask", "small_inputs"),
    "differential equations": ("poisson", "burgers"),
}


class Cell(NamedTuple):
    """One method on one problem, and static weights that were tuned for as long."""

    scores: np.ndarray  # on the test data, by seed
    rank: float
    against_equal: int
    ratio: float = math.nan  # time of a training over Adam's; NaN for the whole pool
    static_mean: float = math.nan
    static_sd: float = math.nan
    against_static: int = LEVEL


# --- the arithmetic ----------------------------------------------------------------


def by_seed(record):
    """By seed; infinite where a training ended in NaN."""
    return np.array([math.inf if s is None else s for s in record["test"]])


def static_scores(static, trials):
    """Expected test score by seed of the best of so many trials, and its SD over all.

    The first trials are equal weights at every rate; the others are drawn from the
    pool without replacement.
    """
    ranked = sorted(static["better"], key=lambda trial: trial["validation"])
    table = np.stack([by_seed(trial) for trial in [*ranked, static["equal"]]])
    size = static["pool"]
    drawn = min(max(trials - len(static["equal"]["validation"]), 0), size)
    chances = [
        math.comb(size - k, drawn - 1) / math.comb(size, drawn) if drawn else 0.0
        for k in range(1, len(ranked) + 1)
    ]
    chances = np.array([*chances, 1 - sum(chances)])
    chances, table = chances[chances > 0], table[chances > 0]
    expected = chances @ table
    if not np.isfinite(expected).all():
        return expected, math.inf
    variance = chances @ np.mean((table - expected.mean()) ** 2, axis=1)
    return expected, math.sqrt(variance)


def ratio(own, other):
    """Mean of own over mean of other, and its 95 % interval by seeds drawn anew."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(own), size=(DRAWS, len(own)))
    ratios = own[drawn].mean(axis=1) / other[drawn].mean(axis=1)
    return own.mean() / other.mean(), *np.quantile(ratios, [0.025, 0.975])


def verdict(own, other):
    """BETTER or WORSE by a paired t test at the level of 1 %, else LEVEL."""
    if not np.isfinite(own).all():
        return WORSE
    if not np.isfinite(other).all():
        return BETTER
    difference = own - other
    size = stats.t.ppf(0.995, len(own) - 1) * stats.sem(difference)
    if abs(difference.mean()) <= size:
        return LEVEL
    return BETTER if difference.mean() < 0 else WORSE


def ranks(values):
    """1 for the smallest; equal values share their mean rank."""
    values = np.asarray(values)
    below = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return below + (equal + 1) / 2


def tabulate(results):
    """A Cell of each method and problem; the methods' names, best mean rank first."""
    finished = [set(found["methods"]) for found in results.values()]
    first = next(iter(results.values()))["methods"]
    names = [name for name in first if all(name in done for done in finished)]
    cells = {}
    for problem, found in results.items():
        static, methods = found["static"], found["methods"]
        first_trials = len(static["equal"]["validation"])
        whole, _ = static_scores(static, first_trials + static["pool"])
        equal = by_seed(static["equal"])
        columns = {name: by_seed(methods[name]) for name in names} | {POOL: whole}
        order = ranks([scores.mean() for scores in columns.values()])
        for (name, scores), rank in zip(columns.items(), order, strict=True):
            cell = Cell(scores, rank, verdict(scores, equal))
            if name != POOL:
                ratio = methods[name]["ratio"]
                other, spread = static_scores(static, int(ratio * first_trials))
                cell = cell._replace(
                    ratio=ratio,
                    static_mean=other.mean(),
                    static_sd=spread,
                    against_static=verdict(scores, other),
                )
            cells[name, problem] = cell

    def mean_rank(name):
        return np.mean([cells[name, problem].rank for problem in results])

    return cells, sorted([*names, POOL], key=mean_rank)


# --- tables ------------------------------------------------------------------------


def rounded(value, like, significant):
    """With so many significant digits of ``like``."""
    if not (math.isfinite(value) and math.isfinite(like)):
        return "diverged"
    places = significant - 1 - math.floor(math.log10(abs(like))) if like else 3
    return f"{value:.{min(max(places, 0), 6)}f}"


def mean_sd(mean, spread):
    return f"{rounded(mean, spread, 2)} ± {rounded(spread, spread, 2)}"


def seeds_mean_sd(scores):
    if not np.isfinite(scores).all():
        return "diverged"  # in at least one seed
    return mean_sd(scores.mean(), scores.std(ddof=1))


def markdown(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def name_of(found):
    name = found["settings"]["name"]
    return name[:1].upper() + name[1:]


def title(found):
    """A problem's name, and how many terms it has."""
    return f"{name_of(found)} (K = {found['settings']['terms']})"


def by_kind(results):
    """Names of the problems that share a table, by what the table is called."""
    known = {name for names in KINDS.values() for name in names}
    rest = [name for name in results if name not in known]
    parts = {
        f"others, {i // WIDTH + 1}": rest[i : i + WIDTH]
        for i in range(0, len(rest), WIDTH)
    }
    kinds = {
        kind: [name for name in names if name in results]
        for kind, names in (KINDS | parts).items()
    }
    return {kind: names for kind, names in kinds.items() if names}


def count(verdicts):
    """Won / tied / lost."""
    return " / ".join(str(verdicts.count(sign)) for sign in (BETTER, LEVEL, WORSE))


def make_tables(results):
    cells, order = tabulate(results)
    summary, static, rates = [], [], []
    for name in order:
        row = [cells[name, problem] for problem in results]
        place = np.array([cell.rank for cell in row])
        spread = f" ± {place.std(ddof=1):.1f}" if len(place) > 1 else ""
        line = [name, f"{place.mean():.1f}{spread}"]
        if name == POOL:
            summary.append([*line, "", count([c.against_equal for c in row]), ""])
            continue
        times = [cell.ratio for cell in row]
        summary.append(
            [
                *line,
                count([cell.against_static for cell in row]),
                count([cell.against_equal for cell in row]),
                f"{np.median(times):.1f} ({min(times):.1f} to {max(times):.1f})",
            ]
        )
        static.append([name, *(mean_sd(c.static_mean, c.static_sd) for c in row)])
        chosen = [found["methods"][name]["rate"] for found in results.values()]
        rates.append([name, *(f"{rate:g}" for rate in chosen)])

    problems = [title(found) for found in results.values()]
    against = "won / tied / lost against static weights"
    times = "training time relative to Adam"
    head = ["method", "mean rank", against, "against equal weights", times]
    scores = {
        f"Scores, {kind}": score_table({n: results[n] for n in names}, cells, order)
        for kind, names in by_kind(results).items()
    }
    return {
        "Summary": markdown(head, summary),
        **scores,
        "Opponents": markdown(["static weights, in the time of", *problems], static),
        "Rates": markdown(["method", *problems], rates),
    }


def score_table(results, cells, order):
    """Test scores of every method on some of the problems."""
    rows = []
    for name in order:
        row = [cells[name, problem] for problem in results]
        marked = (seeds_mean_sd(c.scores) + MARKS[c.against_static] for c in row)
        rows.append([name, *marked])
    undone = [found["static"]["undone"] for found in results.values()]
    if any(undone):
        known = [seeds_mean_sd(by_seed(found)) if found else "" for found in undone]
        rows.append(["scaling undone by hand", *known])
    return markdown(["method", *(title(found) for found in results.values())], rows)


# --- picture -----------------------------------------------------------------------


def draw(results):
    """Scores over those of the static opponent: blue is better, red is worse."""
    cells, order = tabulate(results)
    order = [name for name in order if name != POOL]
    figure = Figure(
        figsize=(2.2 + 0.85 * len(results), 1.5 + 0.25 * len(order)),
        dpi=100,
        layout="constrained",
    )
    ax = figure.subplots()
    logs = np.empty((len(order), len(results)))
    for i, name in enumerate(order):
        for j, problem in enumerate(results):
            cell = cells[name, problem]
            mean = cell.scores.mean()
            logs[i, j] = np.clip(np.log2(mean / cell.static_mean), -2, 2)
            ax.text(
                j,
                i,
                rounded(mean, mean, 3),
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if cell.against_static == BETTER else "normal",
                color="white" if abs(logs[i, j]) > 1.2 else "black",
            )
    image = ax.imshow(logs, cmap="RdBu_r", norm=TwoSlopeNorm(0, -2, 2), aspect="auto")
    settings = [found["settings"] for found in results.values()]
    labels = [f"{s['name']}\n{s['measure']}".replace(", ", ",\n") for s in settings]
    ax.set_xticks(range(len(results)), labels, fontsize=7)
    ax.set_yticks(range(len(order)), order, fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    bar = figure.colorbar(image, ax=ax, shrink=0.3, fraction=0.03, pad=0.01)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "1", "2", "4"])
    bar.set_label("test score over that of static weights", fontsize=8)
    return figure


def write(results, folder):
    """Saves ``comparison.md`` and ``.png``; returns the summary and the scores."""
    tables = make_tables(results)
    text = "\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items())
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    draw(results).savefig(folder / "comparison.png")
    shown = [name for name in tables if name.startswith(("Summary", "Scores"))]
    return "\n\n".join(tables[name] for name in shown)
