"""What the reproductions share: arguments, a table on screen and on disk, colours."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

console = Console()


def arguments(description: str | None, *, seeds: int = 1) -> argparse.Namespace:
    """``--short``, ``--seeds`` and ``--out``, the same for every script."""
    text = (description or "").strip()
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="seconds: does it run?")
    if seeds > 1:
        parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path, default=Path("reproductions-results"))
    args = parser.parse_args()
    args.started = time.perf_counter()
    return args


def mean_sd(values: Any, digits: int = 2) -> str:
    """``mean ± standard deviation``, of the sample; without it for one value."""
    values = np.asarray(values, np.float64)
    text = f"{values.mean():.{digits}f}"
    return text + (f" ± {values.std(ddof=1):.{digits}f}" if values.size > 1 else "")


def show(
    title: str,
    columns: list[str],
    rows: list[list[str]],
    parts: list[list[int]] | None = None,
) -> str:
    """Prints the table; returns it in Markdown.

    With ``parts``, as several narrow tables: each has the first column, the columns of
    its part and the rows that say something there.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    tables = []
    for part in parts or [list(range(1, len(columns)))]:
        said = [row for row in rows if {row[i] for i in part} - {"", "–"}]
        found = [[row[0], *(row[i] for i in part)] for row in [columns, *said]]
        found.insert(1, ["---"] + ["---:"] * len(part))
        tables.append("\n".join("| " + " | ".join(line) + " |" for line in found))
    return "\n\n".join([f"**{title}**", *tables])


def save(
    args: argparse.Namespace,
    name: str,
    figure: Any,
    tables: list[str],
    results: dict[str, Any],
) -> None:
    """Writes ``name.md``, ``name.json`` and ``name.png`` in ``args.out``."""
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"{name}-short" if args.short else name
    seconds = time.perf_counter() - args.started
    machine = (
        f"JAX {jax.__version__}, Optax {optax.__version__}, Python "
        f"{platform.python_version()}, {jax.default_backend()}; {seconds:.0f} s."
    )
    if args.short:
        machine = f"Short run: it shows that the code runs, no more. {machine}"
    text = "\n\n".join([*tables, machine])
    (args.out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    figure.savefig(args.out / f"{name}.png")
    console.print(f"{machine} Saved in {args.out}.", markup=False, highlight=False)
