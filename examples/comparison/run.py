"""Every method of the library on several problems, against tuned static weights.

    python examples/comparison/run.py --workers 16    # all: half a day on one core
    python examples/comparison/run.py --defaults      # the default, its rivals
    python examples/comparison/run.py --short         # seconds: does it run?
    python examples/comparison/run.py --draw docs/data/comparison.json

The protocol is the same for all. A method trains at each of five learning rates with
two tuning seeds; the rate with the best validation score is used for ten other seeds,
whose test scores are reported. Nothing else is tuned.

Its opponent is Adam on the weighted sum under static weights, tuned for as long as the
method's own search for a rate took: with r the time of the method's training over that
of Adam's, measured in turns in one process without compilation, 5 r trials. The first
five are equal weights at the five rates; the others draw a rate of the grid and weights
10^(s u_i), u_i uniform in [-1, 1], with s uniform in [0, 4] and the same for all terms,
so that small corrections have as much of a chance as large ones. The trial with the
best validation score counts. Since n trials drawn from a pool are a matter of luck,
the expected score over all such draws is taken, which is exact: with the pool of N
sorted by validation score, the trial of rank k is chosen with probability
C(N - k, n - 1) / C(N, n).

A method wins (loses) against another if its test scores are smaller (larger) by a
paired t test over the seeds at the level of 1 %.

Results are saved after every method: a run that was cut off resumes where it stopped,
and several processes may work on different problems in one folder.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import default_report
import jax
from bench import (
    RATES,
    TESTING,
    TRIALS,
    Bench,
    draw_trials,
    equal_weights,
    measure,
    rounded,
    search,
)
from methods import DEFAULTS, METHODS
from problems import CHOSEN_ON, FURTHER, HELD_OUT, NOT_TERMS, PROBLEMS
from report import write
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

ALL = PROBLEMS | NOT_TERMS
GROUPS = {
    "chosen on": CHOSEN_ON,
    "held out": HELD_OUT,
    "held out, further": FURTHER,
}
POOL, SHORT_POOL = 100, 10  # random static weights
EQUAL = "equal weights at every rate"

console = Console()


class Job(NamedTuple):
    """What one process does at a time, on one problem.

    A method, Adam on the sum (``EQUAL``), or random trials from the one with a given
    number on, which count if they are better than ``threshold``.
    """

    problem: str
    short: bool
    what: str | int
    threshold: float = 0.0


@functools.cache
def bench_of(name, short):
    return Bench(ALL[name](short))


def work(job):
    """The result of a job."""
    bench = bench_of(job.problem, job.short)
    if job.what == EQUAL:
        return rounded(equal_weights(bench))
    if isinstance(job.what, str):
        return rounded(measure(bench, METHODS[job.what]))
    trials = draw_trials(job.what + TRIALS, bench.problem.num_terms)[job.what :]
    return rounded(search(bench, trials, job.threshold))


def take(found, job, result):
    """Puts a result where it belongs."""
    if job.what == EQUAL:
        pool = SHORT_POOL if job.short else POOL
        found["static"] = result | {"pool": pool, "searched": [], "better": []}
    elif isinstance(job.what, str):
        found["methods"][job.what] = result
    else:
        found["static"]["searched"].append(job.what)
        found["static"]["better"] += result


def searches(name, found, short):
    """The random trials that are left to do."""
    static = found["static"]
    best = min(s for s in static["equal"]["validation"] if s is not None)
    left = set(range(0, static["pool"], TRIALS)) - set(static["searched"])
    return [Job(name, short, first, best) for first in sorted(left)]


def one_core(cores):
    """Called in each worker, so that times do not depend on the other workers."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def results_of(jobs, workers):
    """The jobs with their results, as they come."""
    if workers == 1:
        yield from ((job, work(job)) for job in jobs)
        return
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    )
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0))[:workers]:
        cores.put(core)
    with ProcessPoolExecutor(workers, context, one_core, (cores,)) as pool:
        running = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()


def settings_of(name, short):
    problem = ALL[name](short)
    return {
        "name": problem.name,
        "measure": problem.measure,
        "terms": problem.num_terms,
        "steps": problem.steps,
        "rates": list(RATES),
        "seeds": len(TESTING),
        "machine": f"JAX {jax.__version__}, Python {platform.python_version()}, "
        f"{jax.default_backend()}, {platform.machine()}",
    }


def save(path, found, **layout):
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(found, **layout) + "\n", encoding="utf-8")
    draft.replace(path)


def start(name, args):
    """What the folder holds of a problem, or a new record."""
    path = args.out / f"{name}.json"
    settings = settings_of(name, args.short)
    if not path.is_file():
        return {"settings": settings, "static": None, "methods": {}}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        raise SystemExit(
            f"--out: expected results under {settings} in {path}, found "
            f"{found['settings']}; move the file or take another folder"
        )
    return found


def run_all(names, methods, args):
    found = {name: start(name, args) for name in names}
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:

        def run(title, jobs):
            bar = progress.add_task(title, total=len(jobs))
            for job, result in results_of(jobs, args.workers):
                take(found[job.problem], job, result)
                save(args.out / f"{job.problem}.json", found[job.problem], indent=1)
                label = job.what if isinstance(job.what, str) else "static weights"
                progress.update(bar, advance=1, description=f"{job.problem}: {label}")
            progress.update(bar, description=title)

        equal = [Job(n, args.short, EQUAL) for n in names if not found[n]["static"]]
        run("equal weights", equal)
        jobs = [
            Job(name, args.short, method)
            for method in methods
            for name in names
            if method not in found[name]["methods"]
        ]
        first = 3 * len(names)  # what matters most, if the run is cut off
        jobs[first:first] = [
            job for n in names for job in searches(n, found[n], args.short)
        ]
        run("static weights and methods", jobs)


def gather(folder):
    """The results of all problems in the folder, by the problem's short name."""
    files = {name: folder / f"{name}.json" for name in ALL}
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in files.items()
        if path.is_file()
    }
    return {name: part for name, part in found.items() if part["methods"]}


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--short", action="store_true", help="two problems, three methods, few steps")
    add("--problems", nargs="+", choices=ALL, metavar="NAME", help="default: all")
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", help="default: all")
    add("--defaults", action="store_true", help="the default, its variants, controls")
    add("--workers", type=int, default=1, metavar="N", help="processes, a core each")
    add("--out", type=Path, default=Path("comparison-results"), metavar="FOLDER")
    add("--draw", type=Path, metavar="FILE", help="only draw again what it holds")
    args = parser.parse_args()
    if args.draw and not args.draw.is_file():
        parser.error(f"--draw: found no file {args.draw}")
    return args


def main():
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.draw:
        results = json.loads(args.draw.read_text(encoding="utf-8"))
    else:
        few = list(METHODS)[:3] if args.short else list(METHODS)
        if args.defaults:
            few = ["equal weights", *DEFAULTS]
        names = args.problems or list(ALL)[: 2 if args.short else None]
        run_all(names, args.methods or few, args)
        results = gather(args.out)
    # One objective in two parts counts nowhere, but is shown.
    counted = {name: found for name, found in results.items() if name in PROBLEMS}
    apart = {name: found for name, found in results.items() if name in NOT_TERMS}
    save(args.out / "comparison.json", results, separators=(",", ":"))
    parts = {
        where: {name: found for name, found in results.items() if name in group}
        for where, group in GROUPS.items()
    }
    parts = {where: part for where, part in parts.items() if part}
    default_report.write(parts, apart, args.out)
    if counted:
        console.print(write(counted, args.out), markup=False, highlight=False)


if __name__ == "__main__":
    main()
