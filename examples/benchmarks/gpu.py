"""What a GPU makes of MTAdam's update, of K passes, of rows as terms and of heads.

    python examples/benchmarks/gpu.py            # on a machine with a GPU
    python examples/benchmarks/gpu.py --short    # anywhere: does it run?

docs/benchmarks.md has the figures of an NVIDIA H200. It also runs on CPU, and says so
in its output.

1. Bandwidth of a copy from the device's memory to itself: bytes read and written.
2. MTAdam's update alone, jitted, parameters and state donated, for 10M and 100M
   parameters and K = 2, 4, 10. It has to move at least 4K + 4 copies of the parameters:
   K gradients read twice (norms before scaling), K second moments read and written, the
   first moment and the parameters read and written. Reported are these bytes over its
   time, as a share of the copy's bandwidth (the goal is 80%), and its time over that of
   K Optax Adams.
3. K gradients of the MLP, transformer and conv net with passes unrolled and batched.
4. Steps of UPGrad and MGDA with every row a term, and with heads on a shared trunk, as
   ``run.py`` compares them on CPU. Where PyTorch and TorchJD are installed and see the
   GPU, their steps are timed too.
"""

import argparse
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import ours
from cases import CONV, METHODS, MLP, PLACES, ROWS, TRANSFORMER, TRUNK, described
from ours import make_losses
from problems import Size, make_problem
from rich.console import Console
from rich.table import Table

import multiterm_optax as mt

GOAL = 0.8
LEAVES = 50


def seconds(step, carry, *rest, repeats: int) -> float:
    """Median time of ``carry = step(carry, *rest)``, in chunks without waiting.

    The host only waits at the end of a chunk, so that the launching of one step
    overlaps the step before.
    """
    for _ in range(2):
        carry = jax.block_until_ready(step(carry, *rest))
    chunk = 5
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(chunk):
            carry = step(carry, *rest)
        jax.block_until_ready(carry)
        times.append((time.perf_counter() - begin) / chunk)
    return statistics.median(times)


def copy_bandwidth(size: int, repeats: int) -> float:
    """Bytes read and written by a second of copying."""
    array = jnp.ones(size, jnp.float32)
    copy = jax.jit(jnp.copy)
    taken = seconds(lambda _, x: copy(x), None, array, repeats=repeats)
    return 2 * array.nbytes / taken


def parameters(size: int) -> dict[str, jax.Array]:
    """About ``size`` of them: square matrices, and a bias for each."""
    side = max(1, int((size / (LEAVES / 2)) ** 0.5))
    names = range(LEAVES // 2)
    weights = {f"w{i}": jnp.full((side, side), 0.1) for i in names}
    return weights | {f"b{i}": jnp.zeros(side) for i in names}


def update_case(size: int, num_terms: int, bandwidth: float, repeats: int) -> dict:
    """Times one MTAdam update, and one of Optax's Adam."""
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters(size)))

    def timed(tx: Any, grads: Any) -> float:
        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = parameters(size)
        jitted = jax.jit(step, donate_argnums=0)
        return seconds(jitted, (params, tx.init(params)), grads, repeats=repeats)

    keys = iter(jax.random.split(jax.random.key(0), LEAVES))
    one = jax.tree.map(
        lambda p: jax.random.normal(next(keys), p.shape), parameters(size)
    )
    adam = timed(optax.adam(1e-3), one)
    scales = 1.0 + jnp.arange(num_terms)
    make = jax.jit(lambda g: jax.tree.map(lambda x: jnp.multiply.outer(scales, x), g))
    stacked = make(one)
    del one
    taken = timed(mt.mtadam(1e-3, num_terms), stacked)
    achieved = 4 * (4 * num_terms + 4) * count / taken
    return {
        "parameters": count,
        "K": num_terms,
        "ms": 1e3 * taken,
        "GB/s": achieved / 1e9,
        "of the copy": achieved / bandwidth,
        "of K Adams": taken / (num_terms * adam),
    }


def passes_case(model: str, size: Size, num_terms: int, repeats: int) -> dict:
    """Times K gradients, the passes unrolled and batched."""
    params, batch = jax.tree.map(jnp.asarray, make_problem(model, size, num_terms))
    losses_fn = make_losses(model, size, num_terms)
    found: dict[str, Any] = {"model": model, "K": num_terms}
    for passes in ("unroll", "vmap"):
        grads = jax.jit(mt.value_and_term_grads(losses_fn, passes=passes))

        def step(carry, params, batch, grads=grads):
            del carry
            return grads(params, batch)

        taken = seconds(step, None, params, batch, repeats=repeats)
        found[f"{passes}, ms"] = 1e3 * taken
    found["unroll / vmap"] = found["unroll, ms"] / found["vmap, ms"]
    return found


def torch_on_gpu() -> Any:
    """The module of PyTorch's steps where it sees a GPU, else None."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "torchjd")):
        return None
    import theirs

    return theirs if theirs.torch.cuda.is_available() else None


def step_seconds(runner: Any, wait: Any, repeats: int) -> float:
    """Median time of one training step, done when it is over."""
    runner.start()
    times = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        runner.step()
        wait()
        times.append(time.perf_counter() - begin)
    runner.stop()
    return statistics.median(times[2:])


def step_case(
    model: str,
    size: Size,
    num_terms: int,
    method: str,
    terms: str,
    theirs: Any,
    repeats: int,
) -> dict:
    """Times the fastest way of each side to take a step."""
    problem = model, size, num_terms, method
    name = described(model, size) if terms == "rows" else PLACES[terms]
    found: dict[str, Any] = {
        "model": name,
        "method": METHODS[method],
        "B" if terms == "rows" else "K": num_terms,
    }
    for side, module in (("multiterm", ours), ("PyTorch", theirs)):
        found[f"{side}, ms"], found[f"way of {side}"] = None, "not run"
        if module is None:
            continue
        device, wait = {}, lambda: None
        if module is theirs:
            device, wait = {"device": "cuda"}, theirs.torch.cuda.synchronize
        taken = {}
        for way in module.variants(model, method, terms):
            runner = module.Runner(*problem, way, terms, **device)
            taken[way] = step_seconds(runner, wait, repeats)
        way = min(taken, key=lambda way: taken[way])
        found[f"{side}, ms"], found[f"way of {side}"] = 1e3 * taken[way], way
    return found


def step_cases(short: bool, repeats: int) -> tuple[list[dict], list[dict]]:
    """Every row a term; heads on a trunk."""
    theirs = torch_on_gpu()
    sizes, trunk = (ROWS, TRUNK) if not short else ({"mlp": Size(0, 32, 3)}, None)
    rows = [
        step_case(model, size._replace(batch=b), b, method, "rows", theirs, repeats)
        for model, size in sizes.items()
        for b in ((8,) if short else (64, 256))
        for method in ("upgrad", "mgda")
    ]
    heads = [
        step_case("heads", trunk or Size(8, 32, 3), k, method, terms, theirs, repeats)
        for terms in ("features", "trunk")
        for k in ((2,) if short else (10, 64))
        for method in ("upgrad", "mgda")
    ]
    return rows, heads


def show(console: Console, title: str, rows: list[dict]) -> str:
    """Prints a table and returns it as Markdown; the ways are saved only."""
    rows = [{k: v for k, v in row.items() if "way of" not in k} for row in rows]
    table = Table(title=title, title_justify="left")
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        lines.append(
            [
                "–" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)
                for v in row.values()
            ]
        )
        table.add_row(*lines[-1])
    console.print(table)
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{title}**\n\n{body}\n"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks-results"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    # JAX would take most of the memory at once, and leave none for PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = jax.devices()[0]
    is_gpu = device.platform == "gpu"
    kind = device.device_kind if is_gpu else f"{device.platform}, not a GPU"
    where = f"Device: {kind}; JAX {jax.__version__}, Optax {optax.__version__}."
    if args.short:
        where += " Short run on tiny sizes: it shows that the code works, no more."
    console.print(where, markup=False, highlight=False)

    repeats = 2 if args.short else 10
    bandwidth = copy_bandwidth(10**6 if args.short else 2**28, repeats)
    sizes = (10**5,) if args.short else (10**7, 10**8)
    terms = (2, 4) if args.short else (2, 4, 10)
    updates = [
        update_case(size, k, bandwidth, repeats) for size in sizes for k in terms
    ]
    models = [("mlp", MLP), ("transformer", TRANSFORMER), ("conv", CONV)]
    if args.short:
        models = [("mlp", Size(8, 32, 3)), ("conv", Size(20, pixels=12))]
    passes = [
        passes_case(model, size, k, repeats) for model, size in models for k in terms
    ]
    title = f"MTAdam's update; a copy moves {bandwidth / 1e9:.3g} GB/s"
    text = [where, show(console, title, updates)]
    reached = [row["of the copy"] for row in updates]
    goal = f"Goal on a GPU: {GOAL:.0%} of the copy's bandwidth. "
    if is_gpu and not args.short:
        goal += f"Reached: {min(reached):.0%} to {max(reached):.0%}; "
        goal += "met throughout." if min(reached) >= GOAL else "not met throughout."
    else:
        goal += "Not judged here."
    text.append(goal)
    console.print(text[-1], markup=False, highlight=False)
    text.append(show(console, "K gradients, passes unrolled and batched", passes))
    rows, heads = step_cases(args.short, repeats)
    text.append(show(console, "Every row a term", rows))
    text.append(show(console, "Heads on a shared trunk", heads))

    results = {
        "device": kind,
        "copy GB/s": bandwidth / 1e9,
        "updates": updates,
        "passes": passes,
        "rows": rows,
        "heads": heads,
    }
    name = "gpu-short" if args.short else "gpu"
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1))
    (args.out / f"{name}.md").write_text("\n\n".join(text))
    return results


if __name__ == "__main__":
    main()
