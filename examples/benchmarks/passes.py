"""Which way K backward passes run fastest: unrolled, in a batch or in a loop.

    python examples/benchmarks/passes.py                   # half an hour and more
    python examples/benchmarks/passes.py small conv --terms 2 10
    python examples/benchmarks/passes.py --kind gramian transformer
    python examples/benchmarks/passes.py --short           # anywhere: does it run?

For models of several structures it times the K gradients of ``value_and_term_grads``
by each way of ``passes=``, or the whole step of ``value_and_weighted_grad``: its
default, with the passes to the layers' outputs run in each way, and the ways of
``gramian=``. The ways take turns in one process, in another order in each round. A
figure is the median time of a step; *temporaries* are XLA's own count. With
``--rounds 0`` nothing is timed.

More than 16 passes are not unrolled, since that takes long to compile, and the conv net
is not looped, since XLA:CPU is very slow at that. docs/benchmarks.md has the figures;
the rule for the default is ``choose`` in ``multiterm_optax/gradients/_passes.py``.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ours import NETWORKS, attention, dense, layer_norm
from problems import Size, make_problem
from rich import box
from rich.console import Console
from rich.table import Table
from rows import simple_weights

import multiterm_optax as mt
from multiterm_optax.gradients import _passes

SIZES = {
    "small": Size(batch=64, width=32, depth=3),
    "mlp": Size(batch=32, width=640, depth=8),
    "transformer": Size(batch=16, width=128, depth=2, length=32, heads=4),
    "recurrent": Size(batch=16, width=64, length=32),
    "layers": Size(batch=64, width=128, depth=8),
    "conv": Size(batch=16, pixels=16),
    "experts": Size(batch=8, width=64, depth=3, length=32, heads=4),
}
SHORT = {
    "small": Size(batch=4, width=8, depth=1),
    "recurrent": Size(batch=4, width=8, length=4),
    "layers": Size(batch=4, width=8, depth=2),
    "conv": Size(batch=4, pixels=8),
    "experts": Size(batch=2, width=8, depth=1, length=4, heads=4),
}
SECONDS = 0.05  # of one turn
EXPERTS = 4


def recurrent(params, x, size):
    """A recurrence over time, by ``jax.lax.scan``."""

    def step(hidden, part):
        gate = jax.nn.sigmoid(dense(params, "gate", part) + hidden @ params["keep"])
        new = jnp.tanh(dense(params, "new", part) + hidden @ params["state"])
        return gate * hidden + (1 - gate) * new, None

    start = jnp.zeros((size.batch, size.width))
    hidden, _ = jax.lax.scan(step, start, x.swapaxes(0, 1))
    return dense(params, "head", hidden)


def layers(params, x, size):
    """Layers of one shape, by ``jax.lax.scan``."""
    del size

    def layer(hidden, weights):
        return hidden + jnp.tanh(hidden @ weights["up"]) @ weights["down"], None

    hidden, _ = jax.lax.scan(layer, x, params["layers"])
    return dense(params, "head", hidden)


def experts(params, x, size):
    """Attention and a mixture of experts; each block under ``jax.checkpoint``."""

    def block(weights, x):
        x = x + attention(weights, "attend", layer_norm(weights, "norm1", x), 4)
        inner = layer_norm(weights, "norm2", x)
        shares = jax.nn.softmax(dense(weights, "route", inner))
        hidden = jax.nn.gelu(jnp.einsum("bln,enm->belm", inner, weights["up"]))
        return x + jnp.einsum("ble,belm,emn->bln", shares, hidden, weights["down"])

    for i in range(size.depth):
        x = jax.checkpoint(block)(params["blocks"][i], x)
    return dense(params, "head", x.mean(axis=1))


OWN = {"recurrent": recurrent, "layers": layers, "experts": experts}


def own_problem(model: str, size: Size, num_terms: int):
    """Parameters and batch of a model that only this benchmark has."""
    rng = np.random.default_rng(0)
    width = size.width

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32) / np.sqrt(shape[-2])

    def layer(name, fan_in, fan_out):
        bias = np.zeros(fan_out, np.float32)
        return {f"{name}.weight": normal(fan_in, fan_out), f"{name}.bias": bias}

    params: dict[str, Any] = layer("head", width, num_terms)
    shape = (size.batch, size.length, width)
    if model == "recurrent":
        params |= layer("gate", width, width) | layer("new", width, width)
        params |= {"keep": normal(width, width), "state": normal(width, width)}
    elif model == "layers":
        shape = (size.batch, width)
        up, down = (size.depth, width, 2 * width), (size.depth, 2 * width, width)
        params["layers"] = {"up": normal(*up), "down": normal(*down)}
    else:
        ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
        norms = {f"norm{i}.weight": ones for i in (1, 2)}
        norms |= {f"norm{i}.bias": zeros for i in (1, 2)}
        params["blocks"] = [
            norms
            | layer("attend.qkv", width, 3 * width)
            | layer("attend.out", width, width)
            | layer("route", width, EXPERTS)
            | {"up": normal(EXPERTS, width, 2 * width)}
            | {"down": normal(EXPERTS, 2 * width, width)}
            for _ in range(size.depth)
        ]
    target = rng.normal(size=(size.batch, num_terms)).astype(np.float32)
    return params, {"x": rng.normal(size=shape).astype(np.float32), "y": target}


def compiled_ways(kind: str, model: str, size: Size, num_terms: int) -> dict[str, Any]:
    """The compiled step of each way, without its arguments."""
    if model in OWN:
        params, batch = own_problem(model, size, num_terms)
        network = partial(OWN[model], size=size)
    else:
        base = {"small": "mlp"}.get(model, model)
        params, batch = make_problem(base, size, num_terms)
        network = partial(NETWORKS[base], size=size)
        if base == "conv":
            batch["y"] = np.eye(num_terms, dtype=np.float32)[batch["y"]]

    def losses_fn(params, batch):
        return jnp.square(network(params, batch["x"]) - batch["y"]).mean(axis=0)

    ways: list[Any] = [way for way in _passes.PASSES if way]
    if num_terms > 16:
        ways.remove("unroll")
    if model == "conv" and jax.default_backend() == "cpu":
        ways.remove("loop")

    found = {}
    for way in ways:
        if kind == "grads":
            step = jax.jit(mt.value_and_term_grads(losses_fn, passes=way))
            found[way] = step.lower(params, batch).compile(), (params, batch)
            continue
        by_default: Any = {"unroll": "leaf", "vmap": "stack", "loop": "forward"}[way]
        for asked in (None, by_default):
            pair = mt.value_and_weighted_grad(
                losses_fn, simple_weights(), gramian=asked
            )
            arguments = (pair.init(num_terms), params, batch)
            with mock.patch.object(_passes, "choose", lambda *_, way=way, **__: way):
                step = jax.jit(pair.update).lower(*arguments).compile()
            found[asked or f"default, {way}"] = step, arguments
    return found


def measure(ways: dict[str, Any], rounds: int) -> dict[str, float]:
    """The median time of a step of each way, in ms."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    counts = {}
    for turn in range(rounds + 2):  # the first two are not counted
        names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
        for name in names:
            step, arguments = ways[name]
            count = counts.get(name, 1)
            if count > 1:  # short steps: the first of a turn finds cold caches
                jax.block_until_ready(step(*arguments))
            begin = time.perf_counter()
            for _ in range(count):
                jax.block_until_ready(step(*arguments))
            times[name].append((time.perf_counter() - begin) / count)
            if turn < 2:
                count = int(SECONDS / times[name][-1])
            counts[name] = max(1, count)
    return {name: 1e3 * statistics.median(taken[2:]) for name, taken in times.items()}


def main(arguments: list[str] | None = None) -> dict[tuple[str, int], Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help=f"of {', '.join(SIZES)}; default all")
    parser.add_argument("--kind", choices=("grads", "gramian"), default="grads")
    parser.add_argument("--terms", type=int, nargs="+", default=(2, 4, 10, 16, 32))
    parser.add_argument("--rounds", type=int, default=7, help="0: only temporaries")
    parser.add_argument("--short", action="store_true", help="tiny models, one round")
    args = parser.parse_args(arguments)
    sizes, terms, rounds = SIZES, args.terms, args.rounds
    if args.short:
        sizes, terms, rounds = SHORT, (2,), 1
    title = f"JAX {jax.__version__}, "
    title += f"{jax.devices()[0].device_kind}: {args.kind}"
    table = Table(title=title, box=box.MARKDOWN)
    for head in ("model", "K", "way", "ms", "of the first", "temporaries, MB"):
        table.add_column(head, justify="right")
    results = {}
    for model in args.models or sizes:
        for num_terms in terms:
            ways = compiled_ways(args.kind, model, sizes[model], num_terms)
            taken = measure(ways, rounds) if rounds else dict.fromkeys(ways, np.nan)
            results[model, num_terms] = taken
            first = next(iter(taken.values()))
            for name, ms in taken.items():
                memory = ways[name][0].memory_analysis().temp_size_in_bytes / 1e6
                cells = (ms, ms / first, memory)
                table.add_row(
                    model, str(num_terms), name, *(f"{cell:.3g}" for cell in cells)
                )
    Console(width=100).print(table)
    return results


if __name__ == "__main__":
    main()
