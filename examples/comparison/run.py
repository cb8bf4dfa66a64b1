"""Every method of the library on several problems, against tuned static weights.

    python examples/comparison/run.py --workers 16    # all: half a day on one core
    python examples/comparison/run.py --defaults      # the default, its rivals
    python examples/comparison/run.py --fast     # seconds: does it run?
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

A method wins (loses) against another where the geometric mean of the ratios of their
test scores, seed by seed, is below (above) 1 by a paired t test at the level of 1 %.

Results are saved after every method: a run that was cut off goes on where it stopped,
and several processes may work on different problems in one folder.
"""

import argparse
import functools
import json
import math
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import default_report
import jax
import jax.numpy as jnp
import numpy as np
from methods import DEFAULTS, METHODS, STATIC, Setting
from problems import CHOSEN_ON, NOT_TERMS, PROBLEMS
from report import write
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING, TESTING = (100, 101), tuple(range(10))  # seeds
ALL = PROBLEMS | NOT_TERMS
POOL, FAST_POOL, DECADES = 100, 6, 4.0  # static weights

console = Console()


class Run(NamedTuple):
    validation: float
    test: float
    seconds: float


class Bench:
    """One problem: trains by any method, and times it."""

    def __init__(self, problem):
        self.problem = problem
        self.data = {}
        self.ones = np.ones(problem.num_terms, np.float32)

    def compile(self, method):
        """A function of rate, seed and weights, to a Run."""
        problem = self.problem

        def train(rate, seed, weights, data):
            keys = jax.random.split(jax.random.key(seed), problem.steps + 1)
            setting = Setting(rate, problem.num_terms, problem.steps, keys[0], weights)
            init, step = method(problem.losses_fn, setting)

            def body(carry, key):
                return step(*carry, problem.draw(key, data["train"])), None

            params: Any = problem.init_params(seed)
            (params, _), _ = jax.lax.scan(body, (params, init(params)), keys[1:])
            parts = data["validation"], data["test"]
            return jnp.stack([problem.score(params, part) for part in parts])

        jitted = jax.jit(train)
        example = np.float32(0), np.int32(0), self.ones, self.data_of(TUNING[0])
        compiled = jitted.lower(*example).compile()

        def run(rate, seed, weights):
            data = self.data_of(seed)
            start = time.perf_counter()
            scores = compiled(
                np.float32(rate), np.int32(seed), np.float32(weights), data
            )
            validation, test = jax.block_until_ready(scores).tolist()
            return Run(validation, test, time.perf_counter() - start)

        return run

    def data_of(self, seed):
        if seed not in self.data:
            self.data[seed] = jax.tree.map(jnp.asarray, self.problem.make_data(seed))
        return self.data[seed]


def mean_validation(runs):
    """Infinite where a training ended in NaN."""
    scores = np.array([run.validation for run in runs])
    return float(np.where(np.isnan(scores), np.inf, scores).mean())


def tune(run, weights, between=lambda rate: None):
    """The rate with the best validation score, and the test scores there."""
    validation, seconds = [], []
    for rate in RATES:
        runs = [run(rate, seed, weights) for seed in TUNING]
        between(rate)
        validation.append(mean_validation(runs))
        seconds += [found.seconds for found in runs]
    rate = RATES[int(np.argmin(validation))]
    test = [run(rate, seed, weights).test for seed in TESTING]
    seconds = float(np.median(seconds))
    return {"rate": rate, "validation": validation, "test": test, "seconds": seconds}


def measure(bench, method, adam):
    """One method: rate by validation, test scores, time over that of Adam."""
    adams = []

    def between(rate):
        adams.append(adam(rate, TUNING[0], bench.ones).seconds)

    found = tune(bench.compile(method), bench.ones, between)
    return found | {"ratio": float(found["seconds"] / np.median(adams))}


def search_static(bench, adam, pool):
    """Equal weights at every rate, then a pool of random trials.

    A trial that is no better than equal weights on the validation data is never
    chosen, and so is not tested.
    """
    equal = tune(adam, bench.ones)
    undo = bench.problem.undo
    undone = None if undo is None else tune(adam, undo)
    better = []
    rng = np.random.default_rng(0)
    for _ in range(pool):
        rate = float(rng.choice(RATES))
        spread = rng.uniform(0, DECADES)
        weights = 10 ** (spread * rng.uniform(-1, 1, bench.problem.num_terms))
        mean = mean_validation([adam(rate, seed, weights) for seed in TUNING])
        if mean < min(equal["validation"]):
            test = [adam(rate, seed, weights).test for seed in TESTING]
            relative = np.log10(weights / weights[0]).round(2).tolist()
            trial = {"rate": rate, "log10 weights": relative}
            better.append({**trial, "validation": mean, "test": test})
    return {"equal": equal, "undone": undone, "pool": pool, "better": better}


def rounded(value):
    """Four digits are enough; what is not finite becomes None, as JSON wants it."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def save(path, found, **layout):
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(found, **layout) + "\n", encoding="utf-8")
    draft.replace(path)


class Job(NamedTuple):
    """One method on one problem, or the search for static weights (no method)."""

    problem: str
    method: str | None
    fast: bool


@functools.cache
def bench_of(name, fast):
    return Bench(ALL[name](fast))


def work(job):
    """Runs a job, in a process of its own where there are several."""
    bench = bench_of(job.problem, job.fast)
    adam = bench.compile(STATIC)
    adam(RATES[0], TUNING[0], bench.ones)  # the first call is slower
    if job.method is None:
        return rounded(search_static(bench, adam, FAST_POOL if job.fast else POOL))
    return rounded(measure(bench, METHODS[job.method], adam))


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


def settings_of(name, fast):
    problem = ALL[name](fast)
    return {
        "name": problem.name,
        "measure": problem.measure,
        "terms": problem.num_terms,
        "steps": problem.steps,
        "rates": list(RATES),
        "machine": f"JAX {jax.__version__}, Python {platform.python_version()}, "
        f"{jax.default_backend()}, {platform.machine()}",
    }


def start(name, args):
    """What the folder holds of a problem, or a new record."""
    path = args.out / f"{name}.json"
    settings = settings_of(name, args.fast)
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
    # The search takes longest.
    jobs = [Job(name, None, args.fast) for name in names if not found[name]["static"]]
    jobs += [
        Job(name, method, args.fast)
        for method in methods
        for name in names
        if method not in found[name]["methods"]
    ]
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("trainings", total=len(jobs))
        for job, result in results_of(jobs, args.workers):
            if job.method is None:
                found[job.problem]["static"] = result
            else:
                found[job.problem]["methods"][job.method] = result
            save(args.out / f"{job.problem}.json", found[job.problem], indent=1)
            done = f"{job.problem}: {job.method or 'static weights'}"
            progress.update(bar, advance=1, description=done)


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
    add("--fast", action="store_true", help="two problems, three methods, few steps")
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
        few = list(METHODS)[:3] if args.fast else list(METHODS)
        if args.defaults:
            few = ["equal weights", *DEFAULTS]
        names = args.problems or list(ALL)[: 2 if args.fast else None]
        run_all(names, args.methods or few, args)
        results = gather(args.out)
    # One objective in two parts counts nowhere, but is shown.
    counted = {name: found for name, found in results.items() if name in PROBLEMS}
    apart = {name: found for name, found in results.items() if name in NOT_TERMS}
    save(args.out / "comparison.json", results, separators=(",", ":"))
    default_report.write(counted, apart, set(CHOSEN_ON), args.out)
    if counted:
        console.print(write(counted, args.out), markup=False, highlight=False)


if __name__ == "__main__":
    main()
