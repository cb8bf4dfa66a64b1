"""What it costs to have every row of a batch as a term, against one ordinary gradient.

    python examples/benchmarks/rows.py            # some minutes
    python examples/benchmarks/rows.py --short    # anywhere: does it run?

For an MLP, a transformer and a conv net, it reports XLA's count of operations, the
temporaries and the time of ``value_and_weighted_grad(..., gramian="rows")`` over those
of ``value_and_grad`` of the mean loss. The weights are a plain function of the gramian,
so that the weighting's own problem, which depends on the method, does not count. Times
are medians of alternating steps in one process.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import ROWS
from ours import make_losses
from problems import Size, make_problem
from rich.console import Console
from rich.table import Table

import multiterm_optax as mt

SHORT = {
    "mlp": Size(batch=0, width=16, depth=2),
    "transformer": Size(batch=0, width=16, depth=1, length=4, heads=4),
    "conv": Size(batch=0, pixels=12),
}


def simple_weights() -> mt.Weighting:
    """Weights from the gramian's diagonal; it is kept so that all of it is computed.

    They must depend on it: constant ones are known before the passes, and XLA would
    free what has to wait for the weights.
    """

    def init(num_terms):
        return jnp.zeros((num_terms, num_terms))

    def update(gramian: Any, state, **_):
        del state
        return jax.nn.softmax(jnp.diagonal(gramian)), gramian

    return mt.Weighting(init, update)


def compiled_pair(model: str, size: Size):
    """The ordinary gradient and that of B terms, compiled, with their arguments."""
    params, batch = jax.tree.map(jnp.asarray, make_problem(model, size, 10))
    losses_fn = make_losses(model, size, 10, "rows")
    weighted_grad = mt.value_and_weighted_grad(
        losses_fn, simple_weights(), gramian="rows"
    )
    state = weighted_grad.init(size.batch)
    plain = jax.value_and_grad(lambda *args: losses_fn(*args).mean())
    return (
        (jax.jit(plain).lower(params, batch).compile(), (params, batch)),
        (
            jax.jit(weighted_grad.update).lower(state, params, batch).compile(),
            (state, params, batch),
        ),
    )


def measure(model: str, size: Size, repeats: int) -> list[float]:
    """Operations, temporaries and time, each over that of the ordinary gradient."""
    pair = compiled_pair(model, size)
    times = [[], []]
    for _ in range(repeats + 1):
        for found, (step, arguments) in zip(times, pair, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            found.append(time.perf_counter() - begin)
    steps: list[Any] = [step for step, _ in pair]
    columns = [
        [step.cost_analysis()["flops"] for step in steps],
        [step.memory_analysis().temp_size_in_bytes for step in steps],
        [statistics.median(found[1:]) for found in times],
    ]
    return [float(np.divide(rows, plain)) for plain, rows in columns]


def main(arguments: list[str] | None = None) -> list[list[float]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="small models, one step")
    short = parser.parse_args(arguments).short
    sizes, batches = (SHORT, (20,)) if short else (ROWS, (32, 64, 256))
    table = Table(title=f"B terms over one gradient, JAX {jax.__version__}")
    for head in ("model", "B", "operations", "temporaries", "time"):
        table.add_column(head, justify="right")
    results = []
    for model, size in sizes.items():
        for batch in batches:
            found = measure(model, size._replace(batch=batch), 1 if short else 7)
            results.append(found)
            table.add_row(model, str(batch), *(f"{one:.2f}" for one in found))
    Console().print(table)
    return results


if __name__ == "__main__":
    main()
