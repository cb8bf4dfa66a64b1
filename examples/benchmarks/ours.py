"""The training steps in JAX: networks as plain functions, and this library."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import OUTPUTS
from problems import Size, make_problem

import multiterm_optax as mt

LEARNING_RATE = 1e-4
ROW_GRADS = "value_and_row_grads"


# --- networks ----------------------------------------------------------------------


def dense(params, name, x):
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def mlp(params, x, size):
    for i in range(size.depth):
        x = jax.nn.relu(dense(params, f"layers.{i}", x))
    return dense(params, f"layers.{size.depth}", x)


def layer_norm(params, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
    return centred * spread * params[f"{name}.weight"] + params[f"{name}.bias"]


def attention(params, name, x, heads):
    batch, length, width = x.shape
    qkv = dense(params, f"{name}.qkv", x).reshape(batch, length, 3, heads, -1)
    query, key, value = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
    scores = query @ key.swapaxes(2, 3) / jnp.sqrt(jnp.float32(width // heads))
    mixed = jax.nn.softmax(scores) @ value
    return dense(
        params, f"{name}.out", mixed.swapaxes(1, 2).reshape(batch, length, width)
    )


def transformer(params, tokens, size):
    x = params["tokens.weight"][tokens] + params["places.weight"]
    for i in range(size.depth):
        name = f"blocks.{i}"
        x = x + attention(params, name, layer_norm(params, f"{name}.norm1", x), 4)
        hidden = dense(params, f"{name}.up", layer_norm(params, f"{name}.norm2", x))
        x = x + dense(params, f"{name}.down", jax.nn.gelu(hidden))
    return dense(params, "head", layer_norm(params, "norm", x).mean(axis=1))


def conv(params, images, size):
    x = images
    for name in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(
            x,
            params[f"{name}.weight"],
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params[f"{name}.bias"])
    # Windows that do not overlap: a maximum over an axis is much faster here than
    # XLA's reduce_window.
    rows, side = x.shape[0], x.shape[1] // 2
    x = x.reshape(rows, side, 2, side, 2, -1).max(axis=(2, 4)).reshape(rows, -1)
    return dense(params, "fc2", jax.nn.relu(dense(params, "fc1", x)))


def features(params, batch, size):
    x = batch["x"]
    for i in range(size.depth):
        x = jax.nn.relu(dense(params, f"trunk.{i}", x))
    return x


NETWORKS = {"mlp": mlp, "transformer": transformer, "conv": conv}


# --- losses ------------------------------------------------------------------------


def squared_errors(params, batch, network):
    return jnp.square(network(params, batch["x"]) - batch["y"]).mean(axis=0)


def mean_errors(params, batch, network):
    return jnp.square(network(params, batch["x"]) - batch["y"]).mean(axis=1)


def row_losses(params, batch, network):
    logits = network(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def class_losses(params, batch, network, num_terms):
    is_class = jax.nn.one_hot(batch["y"], num_terms)
    return row_losses(params, batch, network) @ is_class / is_class.sum(axis=0)


def head_losses(features, params, batch):
    """Each head written out: a pass for its loss need not go through the others."""
    losses = []
    for k in range(batch["y"].shape[1]):
        hidden = jax.nn.relu(dense(params, f"heads.{k}.0", features))
        output = dense(params, f"heads.{k}.1", hidden)[:, 0]
        losses.append(jnp.square(output - batch["y"][:, k]).mean())
    return jnp.stack(losses)


def stacked_head_losses(features, params, batch):
    """All heads in two batched products."""

    def stack(name):
        terms = range(batch["y"].shape[1])
        return jnp.stack([params[f"heads.{k}.{name}"] for k in terms])

    hidden = jnp.einsum("bf,kfh->kbh", features, stack("0.weight"))
    hidden = jax.nn.relu(hidden + stack("0.bias")[:, None])
    outputs = jnp.einsum("kbh,kho->kbo", hidden, stack("1.weight"))
    outputs = (outputs + stack("1.bias")[:, None])[..., 0]
    return jnp.square(outputs - batch["y"].T).mean(axis=1)


def make_losses(model, size, num_terms, terms="outputs"):
    """``losses_fn(params, batch)``, [K], or one for each row."""
    if model == "heads":
        return lambda params, batch: head_losses(
            features(params, batch, size), params, batch
        )
    if terms == "rows":
        losses = row_losses if model == "conv" else mean_errors
        return partial(losses, network=partial(NETWORKS[model], size=size))
    network = partial(NETWORKS[model], size=size)
    if model == "conv":
        return partial(class_losses, network=network, num_terms=num_terms)
    return partial(squared_errors, network=network)


# --- steps -------------------------------------------------------------------------


def may_batch(model: str) -> bool:
    """Whether K passes in one batch give the right gradients here.

    On CPU before jaxlib 0.11, attention and normalisation make them wrong.
    """
    return model != "transformer" or jax.__version_info__ >= (0, 11)


def variants(model: str, method: str, terms: str = "outputs") -> list[str]:
    """The ways this library has of taking the step; the fastest one is compared."""
    if method == "adam":
        return ["optax.adam"]
    if method == "mtadam":
        if model != "conv":
            batched = ["term_grads, vmap"] * may_batch(model)
            return ["term_grads", "term_grads, loop", *batched, "max_adam"]
        # No loop here: XLA's convolutions inside one are far too slow on CPU.
        return ["term_grads"] + ["row_grads"] * hasattr(mt, ROW_GRADS)
    if not hasattr(mt, method):
        return []
    if terms == "rows":
        return ["rows"]
    if terms == "features":
        return ["feature_grad", "feature_grad, stacked heads"]
    if terms == "trunk":
        return ["weighted_grad", "weighted_grad, stacked heads"]
    return ["weighted_grad", "weighted", *["weighted, vmap"] * may_batch(model)]


def weighting(method: str) -> Any:
    if method == "pcgrad":
        return mt.pcgrad(jax.random.key(0))
    return getattr(mt, method)()


def is_shared(params: dict[str, Any]) -> dict[str, bool]:
    return {name: not name.startswith("heads.") for name in params}


def weights_first(
    losses_fn: Any, size: Size, method: str, variant: str, terms: str
) -> Any:
    """``WeightedGrad`` whose update takes ``(state, params, batch)``."""
    chosen = weighting(method)
    if terms == "rows":
        return mt.value_and_weighted_grad(losses_fn, chosen, gramian="rows")
    if terms == "outputs":
        return mt.value_and_weighted_grad(losses_fn, chosen)
    heads_fn = stacked_head_losses if "stacked" in variant else head_losses

    def trunk_fn(params, batch):
        return features(params, batch, size)

    if terms == "trunk":
        return mt.value_and_weighted_grad(
            lambda params, batch: heads_fn(trunk_fn(params, batch), params, batch),
            chosen,
            shared=is_shared,
        )
    both = mt.value_and_feature_grad(trunk_fn, heads_fn, chosen)

    def update(state, params, batch):
        shared = is_shared(params)
        trunk = {name: leaf for name, leaf in params.items() if shared[name]}
        heads = {name: leaf for name, leaf in params.items() if not shared[name]}
        losses, grads, state = both.update(state, trunk, heads, batch)
        return losses, grads[0] | grads[1], state

    return both._replace(update=update)


def make_step(model, size, num_terms, method, variant, terms="outputs"):
    """Returns ``init(params) -> state`` and ``step(params, state, batch)``."""
    losses_fn = make_losses(model, size, num_terms, terms)
    side_by_side = variant in ("weighted", "weighted, vmap")
    if method == "mtadam":
        tx = mt.mtadam(LEARNING_RATE, num_terms)
    elif side_by_side:
        tx = mt.weighted(weighting(method), optax.adam(LEARNING_RATE), num_terms)
    else:
        tx = optax.adam(LEARNING_RATE)
    tx = optax.with_extra_args_support(tx)
    init: Any = tx.init

    def gradients(params, batch):
        if method == "adam":

            def total(params):
                losses = losses_fn(params, batch)
                return losses.sum(), losses

            (_, losses), grads = jax.value_and_grad(total, has_aux=True)(params)
            return losses, grads
        if variant == "row_grads":
            rows = partial(row_losses, network=partial(NETWORKS[model], size=size))
            row_grads: Any = getattr(mt, ROW_GRADS)
            return row_grads(rows, num_terms)(params, batch, batch["y"])
        asked = [way for way in ("loop", "vmap") if variant.endswith(way)]
        passes: Any = asked[0] if asked else None
        return mt.value_and_term_grads(losses_fn, passes=passes)(params, batch)

    def step(params, state, batch):
        losses, grads = gradients(params, batch)
        updates, state = tx.update(grads, state, params, losses=losses)
        return optax.apply_updates(params, updates), state, losses

    if variant == "max_adam":
        return max_adam_step(losses_fn, num_terms)
    if method in ("adam", "mtadam") or side_by_side:
        return init, step

    weighted_grad = weights_first(losses_fn, size, method, variant, terms)

    def init_both(params):
        return weighted_grad.init(num_terms), tx.init(params)

    def step_both(params, state, batch):
        weights, state = state
        losses, grads, weights = weighted_grad.update(weights, params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), (weights, state), losses

    return init_both, step_both


def max_adam_step(losses_fn, num_terms):
    """MTAdam's step, which uses up each gradient as it is made."""
    max_adam = mt.value_and_max_adam(losses_fn, mt.by_norm())

    def step(params, state, batch):
        losses, updates, state = max_adam.update(state, params, batch)
        move = optax.tree.scale(-LEARNING_RATE, updates)
        return optax.apply_updates(params, move), state, losses

    return lambda params: max_adam.init(params, num_terms), step


# --- what the worker calls ---------------------------------------------------------


class Runner:
    """A compiled step, and the arrays it trains while it is at work."""

    def __init__(
        self,
        model: str,
        size: Size,
        num_terms: int,
        method: str,
        name: str,
        terms: str = "outputs",
    ):
        outputs = OUTPUTS if terms == "rows" else num_terms
        self.arrays, batch = make_problem(model, size, outputs)
        self.batch = jax.tree.map(jnp.asarray, batch)
        self.init, step = make_step(model, size, num_terms, method, name, terms)
        params = jax.tree.map(jnp.asarray, self.arrays)
        state = jax.eval_shape(self.init, params)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        begin = time.perf_counter()
        self.compiled = jitted.lower(params, state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - begin

    def start(self) -> None:
        self.params = jax.tree.map(jnp.array, self.arrays)
        self.state = self.init(self.params)

    def stop(self) -> None:
        self.params = self.state = None

    def step(self) -> np.ndarray:
        """One training step, done when it returns; the losses before it."""
        self.params, self.state, losses = jax.block_until_ready(
            self.compiled(self.params, self.state, self.batch)
        )
        return np.asarray(losses)

    def program_memory(self) -> dict[str, int]:
        """Bytes by XLA's own analysis of the compiled step, where it has one."""
        memory = self.compiled.memory_analysis()
        if memory is None:
            return {}
        return {
            "temporaries": memory.temp_size_in_bytes,
            "arguments": memory.argument_size_in_bytes,
        }


def set_threads(threads: int) -> None:
    """Nothing to set: XLA takes as many as there are cores it may run on."""
