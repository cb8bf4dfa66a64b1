"""What the ways to train on K terms cost: operations, temporaries and what they keep.

    python examples/benchmarks/costs.py            # some minutes
    python examples/benchmarks/costs.py --short    # anywhere: does it run?

An MLP of 10 million parameters, 64 rows and ten losses. The figures are XLA's own
counts for the compiled step. They do not depend on what else the machine does, since
nothing is run. Operations are in multiples of those of ``value_and_grad`` of the summed
losses. Temporaries, and what is kept from step to step, are in copies of the
parameters; the gradient or update that a step returns is not counted. Where a weighting
reads the gramian, it is MGDA, whose own problem of K numbers counts for little.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ours import dense, mean_errors, mlp, squared_errors
from problems import Size, count, make_problem
from rich import box
from rich.console import Console
from rich.table import Table

import multiterm_optax as mt

SIZE, TERMS = Size(batch=64, width=640, depth=25), 10
SHORT, SHORT_TERMS = Size(batch=8, width=16, depth=1), 2
EVERY, RANK = 10, 8


class Step(NamedTuple):
    """A step ``function(state, *arguments)``, which may overwrite its state."""

    passes: str
    function: Callable[..., Any]
    state: Any
    arguments: tuple[Any, ...]
    countable: bool = True  # XLA counts the body of a loop once, whatever its rounds


class Cost(NamedTuple):
    passes: str
    operations: float | None
    temporaries: float
    kept: float


def adapted_mlp(adapters, params, x, size):
    """The MLP with low-rank adapters in the hidden layers, LoRA."""
    for i in range(size.depth):
        low = x @ adapters[i]["down"] @ adapters[i]["up"]
        x = jax.nn.relu(dense(params, f"layers.{i}", x) + low)
    return dense(params, f"layers.{size.depth}", x)


def trunk_and_head(size: Size):
    """The MLP in two parts: the functions of ``value_and_feature_grad``."""

    def features_fn(trunk, batch):
        x = batch["x"]
        for i in range(size.depth):
            x = jax.nn.relu(dense(trunk, f"layers.{i}", x))
        return x

    def head_losses_fn(features, head, batch):
        found = dense(head, f"layers.{size.depth}", features)
        return jnp.square(found - batch["y"]).mean(axis=0)

    return features_fn, head_losses_fn


def all_steps(size: Size, terms: int) -> dict[str, Step]:
    """The ways by name, the one to which the others are compared first."""
    params, batch = jax.tree.map(jnp.asarray, make_problem("mlp", size, terms))
    network = partial(mlp, size=size)
    losses_fn = partial(squared_errors, network=network)
    row_losses_fn = partial(mean_errors, network=network)
    owners = jnp.arange(size.batch, dtype=jnp.int32) % terms
    top = {name: name.startswith(f"layers.{size.depth}.") for name in params}
    trunk = {name: value for name, value in params.items() if not top[name]}
    head = {name: value for name, value in params.items() if top[name]}
    widths = [params[f"layers.{i}.weight"].shape for i in range(size.depth)]
    adapters = [
        {"down": jnp.ones((wide, RANK)), "up": jnp.zeros((RANK, out))}
        for wide, out in widths
    ]

    def adapter_losses(adapters, params, batch):
        network = partial(adapted_mlp, adapters, size=size)
        return squared_errors(params, batch, network)

    def first(
        passes, grad_fn, *arguments, num_terms=terms, countable=True, **extra
    ) -> Step:
        """Weights first: what ``value_and_weighted_grad`` and its like return."""
        update = partial(grad_fn.update, **extra)
        state = grad_fn.init(num_terms)
        return Step(passes, update, state, arguments, countable)

    def chained(passes, grads_fn, tx, *arguments, trained=params) -> Step:
        """Gradients of the terms, and what makes one update of them."""

        def update(state, *arguments):
            losses, grads, *present = grads_fn(*arguments)
            extra = {"present": present[0]} if present else {}
            updates, state = tx.update(grads, state, None, losses=losses, **extra)
            return losses, updates, state

        return Step(passes, update, tx.init(trained), arguments)

    def by_owner(params, batch, capacity=None):
        grads_fn = mt.value_and_row_grads(row_losses_fn, terms, capacity=capacity)
        return grads_fn(params, batch, owners)

    weighted, own = mt.value_and_weighted_grad, mt.mgda()
    sum_of = jax.value_and_grad(lambda *args: losses_fn(*args).sum())
    stacked = mt.value_and_term_grads(losses_fn)
    mtadam, capacity = mt.mtadam(1e-3, terms), -(-size.batch // terms)
    max_adam = mt.value_and_max_adam(losses_fn, mt.by_norm())
    balanced = mt.balanced(optax.sgd(1e-2), terms)
    in_turn = mt.chain(mt.one_at_a_time(own, terms), optax.sgd(1e-2))
    both = params, batch
    return {
        "one gradient of the sum": Step(
            "1", lambda state, *args: (sum_of(*args), state), (), both
        ),
        "losses alone": first("1", weighted(losses_fn, mt.by_loss()), *both),
        "norms": first(
            "K + 1", weighted(losses_fn, mt.by_norm(0.999, anchor="mean")), *both
        ),
        "gramian": first("K + 1", weighted(losses_fn, own), *both),
        'gramian="leaf"': first(
            "K + 1", weighted(losses_fn, own, gramian="leaf"), *both
        ),
        'gramian="forward"': first(
            "K + 1",
            weighted(losses_fn, own, gramian="forward"),
            *both,
            countable=False,
        ),
        f"every={EVERY}": first(
            f"1 + K / {EVERY}",
            weighted(losses_fn, own, every=EVERY),
            *both,
        ),
        "measured= the last layer": first(
            "1 + K on top", weighted(losses_fn, own, measured=top), *both
        ),
        "features of a trunk": first(
            "1 + K on top",
            mt.value_and_feature_grad(*trunk_and_head(size), own),
            trunk,
            head,
            batch,
        ),
        f"LoRA of rank {RANK}, gramian": first(
            "K + 1", weighted(adapter_losses, own), adapters, params, batch
        ),
        f"LoRA of rank {RANK}, mtadam": chained(
            "K",
            mt.value_and_term_grads(adapter_losses),
            mt.mtadam(1e-3, terms),
            adapters,
            params,
            batch,
            trained=adapters,
        ),
        'gramian="rows", each a term': first(
            "1",
            weighted(row_losses_fn, own, gramian="rows"),
            *both,
            num_terms=size.batch,
        ),
        'gramian="rows", K owners': first(
            "1", weighted(row_losses_fn, own, gramian="rows"), *both, row_terms=owners
        ),
        "value_and_row_grads, mtadam": chained("about 2", by_owner, mtadam, *both),
        "value_and_row_grads, equal": chained(
            "1", partial(by_owner, capacity=capacity), mtadam, *both
        ),
        "one_at_a_time, MGDA": chained(
            "1",
            mt.value_and_one_grad(losses_fn),
            in_turn,
            jnp.zeros([], jnp.int32),
            *both,
        ),
        "K gradients, MGDA": chained(
            "K", stacked, mt.weighted(own, optax.sgd(1e-2), terms), *both
        ),
        "K gradients, balanced SGD": chained("K", stacked, balanced, *both),
        "K gradients, mtadam": chained("K", stacked, mtadam, *both),
        "value_and_max_adam": Step(
            "K", max_adam.update, max_adam.init(params, terms), both, countable=False
        ),
        "K gradients, adatask_adam": chained(
            "K", stacked, mt.adatask_adam(1e-3, terms), *both
        ),
    }


def measure(size: Size, terms: int) -> dict[str, Cost]:
    """The cost of every way, compiled from shapes."""
    params, _ = make_problem("mlp", size, terms)
    copy, plain, found = 4 * count(params), None, {}
    for name, step in all_steps(size, terms).items():
        shapes = jax.eval_shape(lambda *x: x, step.state, *step.arguments)
        compiled = jax.jit(step.function, donate_argnums=0).lower(*shapes).compile()
        counts: Any = compiled.cost_analysis()
        memory: Any = compiled.memory_analysis()
        plain = plain or counts["flops"]
        operations = counts["flops"] / plain
        if name.startswith("every="):  # XLA counts the dearer branch
            held = found["losses alone"].operations
            operations = (operations + (EVERY - 1) * held) / EVERY
        found[name] = Cost(
            step.passes,
            operations if step.countable else None,
            memory.temp_size_in_bytes / copy,
            sum(leaf.nbytes for leaf in jax.tree.leaves(step.state)) / copy,
        )
    return found


def main(arguments: list[str] | None = None) -> dict[str, Cost]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="a tiny model")
    short = parser.parse_args(arguments).short
    size, terms = (SHORT, SHORT_TERMS) if short else (SIZE, TERMS)
    found = measure(size, terms)
    model = f"{size.depth} layers of {size.width}, {size.batch} rows, K = {terms}"
    title = f"MLP, {model}, JAX {jax.__version__}"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for head in ("step", "passes", "operations", "temporaries", "kept"):
        table.add_column(head, justify="left" if head == "step" else "right")
    for name, cost in found.items():
        operations = "" if cost.operations is None else f"{cost.operations:.2f}"
        numbers = operations, f"{cost.temporaries:.2f}", f"{cost.kept:.2f}"
        table.add_row(name, cost.passes, *numbers)
    Console().print(table)
    return found


if __name__ == "__main__":
    main()
