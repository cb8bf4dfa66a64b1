"""Loss balancing on physics-informed networks: Poisson, Helmholtz, Burgers.

The three problems are in ``pde.py``. This is not one paper's experiment: Helmholtz is
the benchmark of Wang, Teng and Perdikaris (2021), Burgers that of Raissi, Perdikaris
and Karniadakis (2019), with fewer steps and smaller networks than theirs, so that their
figures cannot be compared with these. The relative L2 error of the solution is
reported.

Chosen here, the same for every method: 3 hidden layers of 32, tanh; new random points
in each step, 128 inside and 32 to 64 for each other term; 5000 steps; the learning rate
falls to zero along a cosine from the best of 1e-3, 3e-3 and 1e-2. The best is the one
with the smallest error on seed 0; the figures are those of the other seeds.

"Static weights" is Adam on the sum with the terms other than the residual multiplied by
a constant. In MTAdam's time: short runs of seed 0 for each constant and rate share the
steps that the others spend on their three rates. "9 times the tuning": the same runs
in full.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, console, mean_sd, save, show
from matplotlib.figure import Figure
from pde import PROBLEMS, init_params
from rich.progress import Progress

import multiterm_optax as mt

RATES = (1e-3, 3e-3, 1e-2)
WEIGHTS = tuple(10.0**power for power in range(-2, 7))  # of the other terms
RECORDS = 20  # points of the curves
SUM = "Adam on the sum"
STATIC, TUNED = "static weights, MTAdam's time", "static weights, 9 times the tuning"


def weighted(weighting):
    """Adam on the terms' weighted sum."""
    return lambda rate, terms: mt.weighted(weighting(), optax.adam(rate), terms)


def balanced(*stages, **options):
    """Balance by norm, what else is asked for, then Adam on the sum."""

    def make(rate, terms):
        return mt.chain(
            mt.balance_by_norm(terms, **options),
            *(stage(terms) for stage in stages),
            mt.sum_terms(),
            optax.adam(rate),
        )

    return make


# Name: (learning rate or schedule, K) to an optimizer.
METHODS = {
    SUM: lambda rate, terms: mt.chain(mt.sum_terms(), optax.adam(rate)),
    "MTAdam": mt.mtadam,
    "MTAdam, b3 0.999, one group": partial(mt.mtadam, b3=0.999, groups="global"),
    "MTAdam, b3 0.9999, one group": partial(mt.mtadam, b3=0.9999, groups="global"),
    "balance, Adam": balanced(),
    "balance (0.999, one group), UPGrad, Adam": balanced(
        partial(mt.reweight, mt.upgrad()), decay=0.999, groups="global"
    ),
    "AdaTask (Adam)": mt.adatask_adam,
    "MGDA": weighted(mt.mgda),
    "CAGrad": weighted(mt.cagrad),
    "UPGrad": weighted(mt.upgrad),
    "GradNorm": weighted(mt.gradnorm),
    "SoftAdapt, loss-weighted": weighted(
        lambda: mt.softadapt(
            normalized=False, loss_weighted=True, sum_to="terms", eps=1e-8
        )
    ),
    "uncertainty": weighted(mt.uncertainty),
    "LBTW": weighted(mt.lbtw),
    "DWA": weighted(lambda: mt.dwa(steps_per_epoch=100)),
}


def train(problem, make, seed, rate, weight, steps):
    """Errors [RECORDS], and each term's losses, averaged between, [RECORDS, K].

    All terms but the first are multiplied by ``weight`` before the method sees them.
    Everything but the problem and the method is traced: one program for all runs.
    """
    terms = len(problem.terms)
    weights = jnp.full(terms, weight).at[0].set(1.0)
    tx = make(lambda count: rate * (1 + jnp.cos(jnp.pi * count / steps)) / 2, terms)
    grad_fn = mt.value_and_term_grads(
        lambda params, points: weights * problem.losses_fn(params, points)
    )
    start, batches = jax.random.split(jax.random.key(seed))

    def step(i, carry):
        params, state, total = carry
        points = problem.sample(jax.random.fold_in(batches, i))
        losses, grads = grad_fn(params, points)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, total + losses / weights

    def record(carry, i):
        first, last = i * steps // RECORDS, (i + 1) * steps // RECORDS
        carry = *carry, jnp.zeros(terms)
        *carry, total = jax.lax.fori_loop(first, last, step, carry)
        return tuple(carry), (problem.relative_l2(carry[0]), total / (last - first))

    params: Any = problem.init_params(start)
    carry = params, tx.init(params)
    return jax.lax.scan(record, carry, jnp.arange(RECORDS))[1]


class Runs:
    """A method on a problem, compiled once."""

    def __init__(self, problem, make):
        run = jax.jit(partial(train, problem, make))
        self.run = run.lower(0, 1.0, 1.0, 1).compile()

    def __call__(self, seed, rate, steps, weight=1.0):
        """Errors and losses over the steps, and milliseconds a step."""
        started = time.perf_counter()
        errors, losses = jax.device_get(self.run(seed, rate, weight, steps))
        return errors, losses, 1000 * (time.perf_counter() - started) / steps


def end(run):
    """The error that a search compares."""
    return np.nan_to_num(run[0][-1], nan=np.inf)


def report(runs, rate, steps, seeds, weight=1.0):
    """What is kept of a method: its runs on the seeds after the first."""
    found = [runs(seed, rate, steps, weight) for seed in range(1, seeds + 1)]
    errors, losses, times = zip(*found, strict=True)
    return {
        "rate": rate,
        "weight": weight,
        "errors": [float(error[-1]) for error in errors],
        "losses": np.mean([loss[-1] for loss in losses], axis=0).tolist(),
        "curve": np.mean(errors, axis=0).tolist(),
        "milliseconds": min(times),
    }


def solve(problem, methods, steps, seeds, advance):
    """Results of every method and of the static weights, by name."""
    results, sums = {}, Runs(problem, METHODS[SUM])
    for name, make in methods.items():
        runs = sums if name == SUM else Runs(problem, make)
        rate = min(RATES, key=lambda rate: end(runs(0, rate, steps)))
        results[name] = report(runs, rate, steps, seeds)
        advance()
    # Every weight at every rate: in as many steps as the rates of a method, or in full.
    pairs = [(rate, weight) for rate in RATES for weight in WEIGHTS]
    for name, length in ((STATIC, steps // len(WEIGHTS)), (TUNED, steps)):

        def error(pair, length=length):
            return end(sums(0, pair[0], max(length, RECORDS), pair[1]))

        rate, weight = min(pairs, key=error)
        results[name] = report(sums, rate, steps, seeds, weight)
        advance()
    return results


def draw(results):
    """One panel a problem, one line a method: its seeds' errors and their mean."""
    names = list(next(iter(results.values())))
    figure = Figure(figsize=(11, 5), dpi=90, layout="constrained")
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for ax, (title, found) in zip(axes, results.items(), strict=True):
        for line, name in enumerate(names):
            errors, own = found[name]["errors"], "MTAdam" in name.split(",")[0]
            colour = COLOURS[2] if own else "0.4"
            if name in (SUM, STATIC, TUNED):
                colour = COLOURS[1]
            ax.plot(errors, [line] * len(errors), "o", color=colour, alpha=0.5, ms=4)
            ax.plot(np.mean(errors), line, "|", color=colour, ms=12, mew=2)
        ax.axvline(1, color="0.8", lw=1, zorder=0)  # the error of u = 0
        ends = np.log10([error for one in found.values() for error in one["errors"]])
        ax.set(title=title, xscale="log", xlabel="relative L2 error")
        ax.set_xlim(10 ** np.floor(ends.min()), 10 ** max(0.1, ends.max() + 0.1))
        ax.tick_params(axis="x", which="minor", labelbottom=False)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure


def main():
    args = arguments(__doc__, seeds=3)
    steps, seeds, methods = 5000, args.seeds, METHODS
    problems = {name: make() for name, make in PROBLEMS.items()}
    if args.short:
        steps, seeds = 40, 1
        methods = {name: METHODS[name] for name in (SUM, "MTAdam")}
        small = partial(init_params, width=4, depth=1)
        problems = {
            name: problems[name]._replace(init_params=small)
            for name in ("Poisson", "Burgers")
        }
    results = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=len(problems) * (len(methods) + 2))
        for name, problem in problems.items():
            progress.update(bar, description=name)
            advance = partial(progress.advance, bar)
            results[name] = solve(problem, methods, steps, seeds, advance)

    def cells(found):
        weight = f", {found['weight']:g}" if found["weight"] != 1 else ""
        digits = 4 if np.mean(found["errors"]) < 0.01 else 2
        return [mean_sd(found["errors"], digits), f"{found['rate']:g}{weight}"]

    names = list(next(iter(results.values())))
    rows = []
    for name in names:
        every = [found[name] for found in results.values()]
        speed = np.mean([found["milliseconds"] for found in every])
        numbers = [cell for found in every for cell in cells(found)]
        rows.append([name, *numbers, f"{speed:.2f}"])
    columns = ["method"]
    for name in results:
        columns += [name, f"{name}: rate, weight"]
    errors = list(range(1, len(columns), 2))
    table = show(
        f"Relative L2 error after {steps} steps, {seeds} seeds",
        [*columns, "ms per step"],
        rows,
        parts=[errors, [*(i + 1 for i in errors), len(columns)]],
    )
    save(args, "pinns", draw(results), [table], results)


if __name__ == "__main__":
    main()
