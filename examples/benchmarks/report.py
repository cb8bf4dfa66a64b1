"""The tables, on screen and in Markdown; ``drawing.py`` makes the plot."""

from pathlib import Path
from typing import Any

import stats
from cases import METHODS, PARTS, PLACES, described
from problems import Size
from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = (
    "model",
    "method",
    "terms",
    "multiterm, ms",
    "PyTorch, ms",
    "multiterm / PyTorch",
    "MB, multiterm",
    "MB, PyTorch",
)

NAMES = {"ours": "multiterm", "theirs": "PyTorch"}  # of the sides, to readers

BUSY = 3.5  # processes that run or wait: the two threads' own, and more than one other


def write(results: dict[str, Any], out: Path, *, short: bool = False) -> None:
    """Prints the tables and saves ``report.md`` and ``report.png`` in ``out``."""
    import drawing

    console = Console()
    name = "short" if short else "report"
    text = markdown(results, short=short)
    (out / f"{name}.md").write_text(text)
    console.print(screen_table(results))
    for line in [*notes(results, short=short), *multiples(results)]:
        console.print(line, markup=False, highlight=False)
    drawing.draw(results, out / f"{name}.png")
    console.print(f"Saved in {out}.", markup=False)


def in_order(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases by part, model, method and size; they were run in another order."""
    models = [case["model"] for case in results["cases"].values()]

    def place(case: dict[str, Any]) -> tuple:
        method = list(METHODS).index(case["method"])
        part, model, size = case["part"], case["model"], case["size"]["width"]
        # Whoever looks at growth goes from one number of terms to the next.
        width = (size,) if part == "d" else ()
        first = models.index(model), case["terms"]
        return part, *first, method, *width, case["num_terms"]

    return sorted(results["cases"].values(), key=place)


def model_of(case: dict[str, Any]) -> str:
    if case["model"] == "heads":
        return PLACES[case["terms"]]
    return described(case["model"], Size(**case["size"]))


def pick(case: dict[str, Any], side: str, method: str) -> dict[str, Any] | None:
    """The fastest variant that was timed to the end and takes part."""
    timed = [
        entry
        for entry in case["entries"]
        if (entry["side"], entry["method"]) == (side, method)
        and entry.get("rounds")
        and entry["variant"] not in case["extras"]
    ]
    return min(timed, key=lambda e: stats.of_steps(e["rounds"])[1], default=None)


def verdict(value: float, goal: float | None) -> str:
    if goal is None:
        return "–"
    return f"≤ {goal:g}: {'met' if value <= goal else 'not met'}"


def milliseconds(rounds: stats.Rounds) -> str:
    value = 1e3 * stats.of_steps(rounds)[1]
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def ratio_text(found: dict[str, float]) -> str:
    digits = 3 if found["ratio"] < 0.1 else 2
    numbers = (f"{found[key]:.{digits}f}" for key in ("ratio", "low", "high"))
    return "{} ({} to {})".format(*numbers)


def row(case: dict[str, Any]) -> tuple[str, ...]:
    """The row of a case, all text."""
    head = (model_of(case), METHODS[case["method"]], str(case["num_terms"]))
    ours, theirs = (pick(case, s, case["method"]) for s in ("ours", "theirs"))
    if "skipped" in case or ours is None or theirs is None:
        return (*head, *["–"] * 4, case.get("skipped", "nothing ran"))
    return (
        *head,
        milliseconds(ours["rounds"]),
        milliseconds(theirs["rounds"]),
        ratio_text(stats.ratio(ours["rounds"], theirs["rounds"])),
        f"{ours['peak_mb']:.0f}",
        f"{theirs['peak_mb']:.0f}",
    )


def goals(results: dict[str, Any]) -> list[str]:
    """For each case in order, what became of its goal."""
    found = []
    for case in in_order(results):
        ours, theirs = (pick(case, s, case["method"]) for s in ("ours", "theirs"))
        if "skipped" in case or ours is None or theirs is None:
            found.append("–")
            continue
        ratio = stats.ratio(ours["rounds"], theirs["rounds"])["ratio"]
        found.append(verdict(ratio, case["goal"]))
    return found


def screen_table(results: dict[str, Any]) -> Table:
    """With the goals, and without memory, which a terminal has no room for."""
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for i, column in enumerate((*COLUMNS[:6], "goal")):
        right = 2 <= i <= 5
        table.add_column(column, justify="right" if right else "left", no_wrap=i == 5)
    for case, goal in zip(in_order(results), goals(results), strict=True):
        table.add_row(*row(case)[:6], goal)
    return table


def markdown_table(columns: tuple[str, ...], table_rows: list) -> str:
    words = ("model", "method")
    rule = ["---" if column in words else "---:" for column in columns]
    lines = [columns, rule, *table_rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def part_table(part: str, table_rows: list[tuple[str, ...]]) -> str:
    """The table of a part; the model is named where there are several."""
    columns = (*COLUMNS[:2], "B" if part == "e" else "K", *COLUMNS[3:])
    first = 1 if len({row[0] for row in table_rows}) == 1 else 0
    return markdown_table(columns[first:], [row[first:] for row in table_rows])


def multiples(results: dict[str, Any], *, judge: bool = True) -> list[str]:
    """Each framework's step as a multiple of its own Adam's, where that was timed."""
    lines = []
    for name, case in results["cases"].items():
        for side in ("ours", "theirs"):
            adam = pick(case, side, "adam")
            if adam is None:
                continue
            best = pick(case, side, case["method"])
            for entry in case["entries"]:
                if entry["side"] != side or entry["method"] == "adam":
                    continue
                if not entry.get("rounds"):
                    continue
                found = stats.ratio(entry["rounds"], adam["rounds"])
                line = (
                    f"{name}, {NAMES[side]}, {entry['variant']}: "
                    f"{found['ratio']:.2f} times "
                    f"its own Adam ({found['low']:.2f} to {found['high']:.2f}); "
                    f"Adam {milliseconds(adam['rounds'])} ms"
                )
                goal = case["goal_of_adam"] if judge else None
                if goal is not None and side == "ours" and entry is best:
                    line += f"; goal {verdict(found['ratio'], goal)}"
                lines.append(line)
    return lines


def notes(results: dict[str, Any], *, short: bool, judge: bool = True) -> list[str]:
    """The machine, what was left out, and whether both sides computed the same."""
    m = results["machine"]
    lines = [
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gb']:g} GB, {m['system']}; "
        f"{results['threads']} threads for each framework, float32; Python "
        f"{m['python']}, JAX {m['jax']}, Optax {m['optax']}, PyTorch {m['torch']}, "
        f"TorchJD {m['torchjd']}."
    ]
    if short:
        lines.append("Short run on tiny models: it shows that the code works, no more.")
    if max(results["load"], default=0) > BUSY:
        lines.append(
            f"The machine was busy: up to {max(results['load']):.1f} processes ran or "
            "waited as cases began. Times and ratios are not to be trusted."
        )
    judged = [goal for goal in goals(results) if judge and goal != "–"]
    met = sum(goal.endswith(" met") and "not" not in goal for goal in judged)
    if judged:
        lines.append(f"Goals for multiterm / PyTorch met: {met} of {len(judged)}.")
    apart = [case["losses_apart"] for case in results["cases"].values()]
    for when, i in (("before", 0), ("after", 1)):
        worst = max((a[i] for a in apart if a), default=float("nan"))
        lines.append(
            f"Largest relative difference of any loss {when} the first step, all "
            f"variants of both frameworks: {worst:.1e}."
        )
    if results.get("not_run"):
        lines.append(f"Not run: {'; '.join(results['not_run'])}.")
    return lines


def beside(results: dict[str, Any]) -> list[str]:
    """What was timed outside the comparison, where a case has no Adam to refer to."""
    lines = []
    for name, case in results["cases"].items():
        ours = pick(case, "ours", case["method"])
        for entry in case["entries"]:
            if case["baseline"] or entry["variant"] not in case["extras"]:
                continue
            if ours is None or not entry.get("rounds"):
                continue
            found = stats.ratio(ours["rounds"], entry["rounds"])
            lines.append(
                f"{name}: {entry['variant']}, which computes something else, takes "
                f"{milliseconds(entry['rounds'])} ms; multiterm over it: "
                f"{ratio_text(found)}."
            )
    return lines


def label(case: dict[str, Any]) -> str:
    """A short name, among the cases of the same part."""
    letter = "B" if case["terms"] == "rows" else "K"
    return f"{model_of(case)}, {METHODS[case['method']]}, {letter} = "


def ways(results: dict[str, Any]) -> list[str]:
    """Which ways were the fastest, and in which cases."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for case in in_order(results):
        both = [pick(case, side, case["method"]) for side in ("ours", "theirs")]
        if all(both):
            ours, theirs = (entry["variant"] for entry in both if entry)
            listed = found.setdefault((ours, theirs), {})
            listed.setdefault(label(case), []).append(str(case["num_terms"]))
    lines = []
    for (ours, theirs), listed in found.items():
        names = "; ".join(name + ", ".join(terms) for name, terms in listed.items())
        lines.append(f"`{ours}` and `{theirs}`: {names}.")
    return lines


def compilation(results: dict[str, Any]) -> list[str]:
    """Compilation and XLA's own count of temporaries, of the ways compared."""
    found: dict[str, list[tuple[float, float]]] = {}
    for case in in_order(results):
        ours = pick(case, "ours", case["method"])
        if ours is not None and ours["program_mb"]:
            numbers = ours["compile_seconds"], ours["program_mb"]["temporaries"]
            found.setdefault(case["part"], []).append(numbers)
    lines = []
    for part, pairs in found.items():
        seconds, megabytes = zip(*pairs, strict=True)
        lines.append(
            f"{PARTS[part]}: {min(seconds):.1f} to {max(seconds):.1f} s, "
            f"{min(megabytes):.0f} to {max(megabytes):.0f} MB."
        )
    return lines


def markdown(results: dict[str, Any], *, short: bool = False) -> str:
    """The whole report; made to be pasted under a heading of the documentation.

    It says what was measured. The goals are for those who work on the library, and are
    on screen only.
    """
    machine, *remarks = notes(results, short=short, judge=False)
    blocks = [machine]
    found: dict[str, list] = {}
    for case in in_order(results):
        found.setdefault(case["part"], []).append(row(case))
    for part, table_rows in found.items():
        blocks += [f"**{PARTS[part]}**", part_table(part, table_rows)]
    for title, lines in (
        ("Beside", [*multiples(results, judge=False), *beside(results), *remarks]),
        ("Fastest ways, multiterm and PyTorch", ways(results)),
        ("Compilation and temporaries of the program", compilation(results)),
    ):
        blocks += [f"**{title}**", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(blocks) + "\n"
