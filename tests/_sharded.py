"""A small model, laid over eight devices, and its gradients by hand."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import multiterm_optax as mt

# Two terms, since MGDA then needs no iterations: short programs, quickly compiled.
K, DEVICES, WIDTH, ROWS = 2, 8, 16, 32

TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}

# Where the parameters lie: copied to each device, or their first axis over all.
LAYOUTS = {"data parallel": P(), "fsdp": P("x")}

METHODS = {
    "mtadam": lambda: mt.mtadam(1e-2, K),
    "adatask_adam": lambda: mt.adatask_adam(1e-2, K),
    "weighted mgda": lambda: mt.weighted(mt.mgda(), optax.adam(1e-2), K),
    "weighted softadapt": lambda: mt.weighted(mt.softadapt(), optax.adam(1e-2), K),
    "ladatask_rmsprop": lambda: mt.ladatask_rmsprop(1e-2, K),
    "adaptive_mgda": lambda: mt.adaptive_mgda(
        optax.adam(1e-2), K, 1e-3, steps_per_epoch=2
    ),
    "metabalance": lambda: mt.metabalance(optax.adam(1e-2), K),
    "pcgrad": lambda: optax.chain(
        mt.reweight(mt.pcgrad(jax.random.key(0)), K), mt.sum_terms(), optax.adam(1e-2)
    ),
    "grad_drop": lambda: optax.chain(mt.grad_drop(jax.random.key(0)), optax.adam(1e-2)),
}


def mesh_of(types, name="x"):
    return jax.make_mesh((DEVICES,), (name,), axis_types=(TYPES[types],))


def lay(tree, mesh, spec):
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree
    )


def start():
    """Parameters as NumPy arrays: donating what is made of them leaves them alone."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    return {"hidden": draw(WIDTH, 8), "out": draw(8)}


def rows():
    rng = np.random.default_rng(1)
    shapes = [(ROWS, WIDTH), (ROWS,)]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def losses_fn(params, batch):
    x, y = batch
    found = jnp.tanh(x @ params["hidden"]) @ params["out"]
    return {
        "fit": jnp.mean((found - y) ** 2),
        "even": 10 * jnp.mean(jnp.abs(found + y)),
    }


def by_hand():
    """Losses and gradients [K, *p] of the start, in NumPy's float64."""
    hidden, out = (np.float64(start()[name]) for name in ("hidden", "out"))
    x, y = map(np.float64, rows())
    inside = np.tanh(x @ hidden)
    found = inside @ out
    losses = {"fit": np.mean((found - y) ** 2), "even": 10 * np.mean(np.abs(found + y))}
    # The terms in the order of their names.
    slopes = np.stack([10 * np.sign(found + y), 2 * (found - y)]) / ROWS
    through = slopes[:, :, None] * out * (1 - inside**2)
    return losses, {"hidden": x.T @ through, "out": slopes @ inside}


def gathered(params, batch):
    """For explicit axes, where a model says itself when weights are gathered."""
    return losses_fn(
        jax.tree.map(lambda p: jax.sharding.reshard(p, P()), params), batch
    )


def training_step(tx, losses_fn=losses_fn):
    def step(params, state, batch):
        losses, grads = mt.value_and_term_grads(losses_fn)(params, batch)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, losses

    return step


def assert_lies(tree, params, mesh, spec):
    """What has a parameter's shape lies as it does, and each row of what is [K, *p]."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    seen = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        expected = None
        if leaf.shape in shapes:
            expected = spec
        elif leaf.shape[:1] == (K,) and leaf.shape[1:] in shapes:
            expected = P(None, *spec)
        if expected is not None:
            seen += 1
            where = f"{jax.tree_util.keystr(path)} {leaf.sharding}"
            wanted = NamedSharding(mesh, expected)
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), where
    assert seen


# What a compiled program sends.

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


def collectives(compiled, kind):
    """For each operation of a kind the bytes of its results; a combined one is one."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.search(rf"= (.+?) {kind}(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            sizes = [[int(n) for n in dims.split(",") if n] for _, dims in shapes]
            types = [BYTES[name] for name, _ in shapes]
            found.append(
                sum(b * math.prod(s) for b, s in zip(types, sizes, strict=True))
            )
    return found


def size(tree):
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(tree))
