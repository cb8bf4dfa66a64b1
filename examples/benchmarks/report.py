"""The tables, on screen and in Markdown; ``drawing.py`` makes the plot."""

from pathlib import Path
from typing import Any

import stats
from cases import METHODS, PARTS
from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = (
    "model",
    "method",
    "K",
    "multiterm, ms",
    "PyTorch, ms",
    "multiterm / PyTorch",
    "goal",
    "MB, multiterm",
    "MB, PyTorch",
    "fastest ways",
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
    console.print(screen_table(rows(results)))
    for line in [*notes(results, short=short), *multiples(results)]:
        console.print(line, markup=False, highlight=False)
    drawing.draw(results, out / f"{name}.png")
    console.print(f"Saved in {out}.", markup=False)


def in_order(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases by part, method and size; they were run in another order."""

    def place(case: dict[str, Any]) -> tuple:
        method = list(METHODS).index(case["method"])
        return case["part"], method, case["size"]["width"], case["num_terms"]

    return sorted(results["cases"].values(), key=place)


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
    low, middle, high = (1e3 * s for s in stats.of_steps(rounds))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for each case that was run, all text."""
    table = []
    for case in in_order(results):
        size = case["size"]
        model = case["model"]
        if case["part"] == "d":
            model = f"{model} {size['width']}x{size['depth']}"
        head = (model, METHODS[case["method"]], str(case["num_terms"]))
        ours, theirs = (pick(case, s, case["method"]) for s in ("ours", "theirs"))
        if "skipped" in case or ours is None or theirs is None:
            reason = case.get("skipped", "nothing ran")
            table.append((*head, *["–"] * 6, reason))
            continue
        found = stats.ratio(ours["rounds"], theirs["rounds"])
        table.append(
            (
                *head,
                milliseconds(ours["rounds"]),
                milliseconds(theirs["rounds"]),
                f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})",
                verdict(found["ratio"], case["goal"]),
                f"{ours['peak_mb']:.0f}",
                f"{theirs['peak_mb']:.0f}",
                f"{ours['variant']}; {theirs['variant']}",
            )
        )
    return table


def screen_table(table_rows: list[tuple[str, ...]]) -> Table:
    """Without quartiles, memory and variants, which a terminal has no room for."""
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for i, column in enumerate(COLUMNS[:7]):
        right = 2 <= i <= 5
        table.add_column(column, justify="right" if right else "left", no_wrap=i == 5)
    for row in table_rows:
        medians = (cell.split(" (")[0] for cell in row[3:5])
        table.add_row(*row[:3], *medians, *row[5:7])
    return table


def markdown_table(columns: tuple[str, ...], table_rows: list) -> str:
    lines = [columns, ["---"] * len(columns), *table_rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def multiples(results: dict[str, Any], *, goals: bool = True) -> list[str]:
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
                goal = case["goal_of_adam"] if goals else None
                if goal is not None and side == "ours" and entry is best:
                    line += f"; goal {verdict(found['ratio'], goal)}"
                lines.append(line)
    return lines


def notes(results: dict[str, Any], *, short: bool, goals: bool = True) -> list[str]:
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
    judged = [row[6] for row in rows(results) if goals and row[6] != "–"]
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
        lines.append(f"Not run yet: {', '.join(results['not_run'])}.")
    return lines


def compile_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Compilation and XLA's own count of temporaries, of the variants compared."""
    table = []
    for name, case in results["cases"].items():
        ours = pick(case, "ours", case["method"])
        if ours is not None and ours["program_mb"]:
            program = ours["program_mb"]
            numbers = (ours["compile_seconds"], program["temporaries"])
            table.append((name, ours["variant"], *(f"{x:.1f}" for x in numbers)))
    return table


def markdown(results: dict[str, Any], *, short: bool = False) -> str:
    """The whole report; made to be pasted under a heading of the documentation.

    It says what was measured. The goals are for those who work on the library, and are
    on screen only.
    """
    machine, *remarks = notes(results, short=short, goals=False)
    blocks = [machine]
    by_case = zip(in_order(results), rows(results), strict=True)
    found: dict[str, list] = {}
    for case, row in by_case:
        found.setdefault(case["part"], []).append(row[:6] + row[7:])
    for part, table_rows in found.items():
        table = markdown_table(COLUMNS[:6] + COLUMNS[7:], table_rows)
        blocks += [f"**{PARTS[part]}**", table]
    lines = [*multiples(results, goals=False), *remarks]
    blocks.append("\n".join(f"- {line}" for line in lines))
    columns = ("case", "way", "compilation, s", "temporaries of the program, MB")
    blocks += [
        "**Compilation and temporaries, multiterm**",
        markdown_table(columns, compile_rows(results)),
    ]
    return "\n\n".join(blocks) + "\n"
