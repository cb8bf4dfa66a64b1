"""Eight virtual devices: results, where the state lies, and what is sent.

What is sent is read from the compiled program: the shapes of its collectives, in bytes
that arrive at one device.
"""

import math
import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import multiterm_optax as mt
from tests._asserts import CountedTraces, assert_single_trace
from tests._runs import first_step
from tests.references.min_norm import min_norm_point
from tests.test_docs import DOCS, python_blocks, run

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


@pytest.fixture(scope="module")
def on_one_device():
    """Parameters and losses after three steps of each method, computed when asked."""
    found = {}

    def train(method):
        if method not in found:
            tx = METHODS[method]()
            step = jax.jit(training_step(tx))
            params, batch = start(), rows()
            state = jax.jit(tx.init)(params)
            for _ in range(3):
                params, state, losses = step(params, state, batch)
            found[method] = jax.device_get((params, losses))
        return found[method]

    return train


# By default tests/optimizers/test_battery_sharded.py traces the other methods on
# explicit axes, and with absent terms two more are compared below.
EXPLICIT = {"mtadam"}
# The mixing of pcgrad is "reweight mixing" below, and its draws are those of a key, as
# grad_drop's are. The balance of metabalance is the one of mtadam, the state of
# adatask_adam and ladatask_rmsprop like that of mtadam, adaptive_mgda weights as MGDA
# does, and the weights of softadapt are laid over devices below.
REPEATS = {"pcgrad", "metabalance", "weighted softadapt"}
REPEATS |= {"adatask_adam", "ladatask_rmsprop", "adaptive_mgda"}
RUNS = [
    *(
        pytest.param(
            *("auto", "fsdp", method),
            marks=pytest.mark.slow if method in REPEATS else (),
        )
        for method in METHODS
    ),
    *(
        pytest.param(
            *("explicit", "data parallel", method),
            marks=() if method in EXPLICIT else pytest.mark.slow,
        )
        for method in METHODS
    ),
    pytest.param("auto", "data parallel", "mtadam", marks=pytest.mark.slow),
    ("explicit", "fsdp", "mtadam"),
    pytest.param("explicit", "fsdp", "adaptive_mgda", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("types", "layout", "method"), RUNS)
def test_training_is_that_of_one_device(types, layout, method, on_one_device):
    mesh, spec = mesh_of(types), LAYOUTS[layout]
    tx = METHODS[method]()
    gathers = types == "explicit" and layout == "fsdp"
    counted = CountedTraces(training_step(tx, gathered if gathers else losses_fn))
    with jax.set_mesh(mesh):
        params = lay(start(), mesh, spec)
        state = tx.init(params)
        assert_lies(state, start(), mesh, spec)
        batch = lay(rows(), mesh, P("x"))
        step = jax.jit(lambda *args: counted(*args), donate_argnums=(0, 1))
        for _ in range(3):
            params, state, losses = step(params, state, batch)
            assert_lies((params, state), start(), mesh, spec)
    assert_single_trace(counted)
    expected, expected_losses = on_one_device(method)
    for name, leaf in params.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, expected_losses[name], rtol=1e-4)


@pytest.mark.parametrize("method", ["mtadam", "adatask_adam", "weighted mgda"])
def test_compiled_init_inherits_the_sharding_on_explicit_axes(method):
    mesh = mesh_of("explicit")
    with jax.set_mesh(mesh):
        state = jax.jit(METHODS[method]().init)(lay(start(), mesh, P("x")))
    assert_lies(state, start(), mesh, P("x"))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("method", ["mtadam", "adatask_adam", "adaptive_mgda"])
def test_compiled_init_lays_the_arrays_of_all_terms_on_automatic_axes(method, given):
    # Here an init of Optax alone returns zeros that lie on one device.
    mesh = mesh_of("auto")
    with jax.set_mesh(mesh) if given else nullcontext():
        state = jax.jit(METHODS[method]().init)(lay(start(), mesh, P("x")))
    per_term = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 3]
    assert per_term
    assert_lies(per_term, start(), mesh, P("x"))


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


def compile_step(step, *args):
    return jax.jit(step).lower(*args).compile()


def test_collectives_are_found_and_measured():
    mesh = mesh_of("auto")
    x = lay(np.zeros((16, 4), np.float32), mesh, P("x"))
    copied = NamedSharding(mesh, P())
    program = jax.jit(lambda x: (x, x.sum()), out_shardings=copied).lower(x).compile()
    assert collectives(program, "all-gather") == [16 * 4 * 4]
    assert collectives(program, "all-reduce") == [4]


def wide_losses_fn(params, batch):
    x, y = batch
    found = jnp.tanh(x @ params["w"]) @ params["head"]
    return {
        "fit": jnp.mean((found - y) ** 2),
        "even": jnp.mean(jnp.abs(found)),
    }


def wide(mesh, spec):
    """A network with more weights than a device has activations, and a batch."""
    shapes = {"w": (64, 64), "head": (64, 8)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    batch = (np.ones((64, 64), np.float32), np.ones((64, 8), np.float32))
    return lay(params, mesh, spec), lay(batch, mesh, P("x"))


def size(tree):
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(tree))


def compile_summed(params, batch):
    tx = optax.adam(1e-2)

    def step(params, state, batch):
        def total(params):
            return sum(wide_losses_fn(params, batch).values())

        updates, state = tx.update(jax.grad(total)(params), state, params)
        return optax.apply_updates(params, updates), state

    return compile_step(step, params, tx.init(params), batch)


def compile_terms(method, params, batch):
    tx = METHODS[method]()
    step = training_step(tx, wide_losses_fn)
    return compile_step(step, params, tx.init(params), batch)


def compile_weights_first(params, batch):
    tx = optax.adam(1e-2)
    weighted_grad = mt.value_and_weighted_grad(wide_losses_fn, mt.mgda())

    def step(params, state, weights_state, batch):
        _, grads, weights_state = weighted_grad.update(weights_state, params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, weights_state

    weights_state = weighted_grad.init(K)
    return compile_step(step, params, tx.init(params), weights_state, batch)


def test_fsdp_gathers_no_more_than_the_summed_loss():
    mesh = mesh_of("auto")
    with jax.set_mesh(mesh):
        params, batch = wide(mesh, P("x"))
        summed = sum(collectives(compile_summed(params, batch), "all-gather"))
        assert summed >= size(params)  # each weight at least once
        for program in (
            compile_terms("mtadam", params, batch),
            compile_terms("weighted mgda", params, batch),
            compile_weights_first(params, batch),
        ):
            assert sum(collectives(program, "all-gather")) <= 1.25 * summed


def test_data_parallel_reduces_all_gradients_at_once():
    mesh = mesh_of("auto")
    with jax.set_mesh(mesh):
        params, batch = wide(mesh, P())
        scalars = 4 * 16
        for method in ("mtadam", "weighted mgda"):
            program = compile_terms(method, params, batch)
            (reduced,) = collectives(program, "all-reduce")  # one operation
            assert K * size(params) <= reduced <= K * size(params) + scalars
            assert collectives(program, "all-gather") == []
        # Weights first: the gradients for the gramian, then the weighted one.
        reduced = collectives(compile_weights_first(params, batch), "all-reduce")
        assert len(reduced) == 2
        assert sum(reduced) <= (K + 1) * size(params) + scalars


# Terms over devices: one gradient on each.


def by_gramian():
    """A weighting that reads the gramian: 1 / |g_i|^2 or so."""
    return mt.Weighting(
        init=lambda num_terms: (),
        update=lambda gramian, state, **_: (1 / jnp.sum(gramian**2, axis=1), state),
    )


def mixing():
    """A weighting that mixes: each term gives its gradient to the next, too."""
    matrix = np.eye(DEVICES, dtype=np.float32)
    matrix += 0.5 * np.eye(DEVICES, k=1, dtype=np.float32)
    return mt.Weighting(
        init=lambda num_terms: (),
        update=lambda gramian, state, **_: (jnp.asarray(matrix), state),
        reads_gramian=False,
    )


STAGES = {
    "balance_by_norm": lambda: mt.balance_by_norm(DEVICES),
    "inverse_dirichlet": lambda: mt.inverse_dirichlet(DEVICES),
    "output_balance": lambda: mt.output_balance(DEVICES),
    "reweight gramian": lambda: mt.reweight(by_gramian(), DEVICES),
    "reweight mgda": lambda: mt.reweight(mt.mgda(), DEVICES),
    "reweight softadapt": lambda: mt.reweight(mt.softadapt(), DEVICES),
    "reweight mixing": lambda: mt.reweight(mixing(), DEVICES),
    # It has a counter for each term, too, which no parameter lays out.
    "per_term adam": lambda: mt.per_term(optax.scale_by_adam(), DEVICES),
    "scale_by_max_adam": lambda: mt.scale_by_max_adam(DEVICES),
    "sum_terms": lambda: mt.sum_terms(),
    "weighted": lambda: mt.weighted(mt.softadapt(), optax.sgd(1e-2), DEVICES),
}
# The page of many devices, which is run below, has it on explicit axes.
PAGE = ("reweight mgda",)
# On automatic axes these gather the terms, and MGDA's solver is laid over devices, too.
GATHER = ("reweight gramian", "reweight mgda", "reweight mixing")
# One stage that keeps the terms and one that removes them; the others go the same way.
AUTO = ("balance_by_norm", "scale_by_max_adam")


@pytest.mark.parametrize(
    ("stage", "types"),
    [
        *(
            pytest.param(
                *(stage, "explicit"), marks=pytest.mark.slow if stage in PAGE else ()
            )
            for stage in STAGES
        ),
        *(
            pytest.param(
                *(stage, "auto"), marks=() if stage in AUTO else pytest.mark.slow
            )
            for stage in STAGES
            if stage not in GATHER
        ),
    ],
)
def test_terms_over_devices(stage, types):
    rng = np.random.default_rng(0)
    params = {"w": np.zeros((32, 16), np.float32), "b": np.zeros(16, np.float32)}
    grads = {
        name: rng.normal(size=(DEVICES, *leaf.shape)).astype(np.float32)
        for name, leaf in params.items()
    }
    losses = np.arange(1, DEVICES + 1, dtype=np.float32)
    tx = STAGES[stage]()

    def update(grads, state, params):
        return tx.update(grads, state, params, losses=losses)

    expected, _ = first_step(tx, grads, params, losses=losses)
    mesh = mesh_of(types, "terms")

    with jax.set_mesh(mesh):
        laid, params = lay(grads, mesh, P("terms")), lay(params, mesh, P())
        state = tx.init(params)
        program = jax.jit(update).lower(laid, state, params).compile()
        updates, _ = program(laid, state, params)
    for name, leaf in updates.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-6)
        if leaf.ndim == grads[name].ndim:
            # K -> K: each term stays where it was.
            assert leaf.sharding.is_equivalent_to(
                NamedSharding(mesh, P("terms")), leaf.ndim
            )
    whole = size(grads)
    # Nothing but vectors of K numbers for each leaf is gathered.
    assert sum(collectives(program, "all-gather")) <= 0.1 * whole
    if types == "explicit":
        # A sum sends one gradient, a gramian an eighth of each device's.
        assert sum(collectives(program, "all-reduce")) <= 2.2 * whole / DEVICES
        assert sum(collectives(program, "collective-permute")) == 0


# Explicit axes: the types of arrays carry their sharding through each derivative.


@pytest.mark.parametrize("passes", ["vmap", "loop"])
def test_batched_passes_on_explicit_axes(passes):
    mesh = mesh_of("explicit")
    expected_losses, expected = by_hand()
    with jax.set_mesh(mesh):
        batch, params = lay(rows(), mesh, P("x")), lay(start(), mesh, P("x"))
        grad_fn = mt.value_and_term_grads(gathered, passes=passes)
        losses, grads = jax.jit(grad_fn)(params, batch)
    assert_lies(grads, start(), mesh, P("x"))
    for name, leaf in grads.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5)
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, expected_losses[name], rtol=1e-5)


@pytest.mark.parametrize(
    "gramian", [None, "leaf", pytest.param("stack", marks=pytest.mark.slow), "forward"]
)
def test_weights_first_on_explicit_axes(gramian):
    mesh = mesh_of("explicit")
    _, each = by_hand()
    flat = np.concatenate([leaf.reshape(K, -1) for leaf in each.values()], axis=1)
    _, weights = min_norm_point(flat)
    with jax.set_mesh(mesh):
        batch, params = lay(rows(), mesh, P("x")), lay(start(), mesh, P("x"))
        many = mt.value_and_weighted_grad(gathered, mt.mgda(), gramian=gramian)
        _, grads, state = jax.jit(many.update)(many.init(K), params, batch)
    assert weights.min() > 0.01  # both have a say
    np.testing.assert_allclose(state.weights, weights, atol=1e-4)
    assert_lies(grads, start(), mesh, P("x"))
    for name, leaf in grads.items():
        expected = np.tensordot(weights, each[name], 1)
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", [P(None, "x"), P(None, None, "x"), P("x")], ids=str)
def test_gramian_of_many_terms_on_explicit_axes(spec):
    terms = 16
    rng = np.random.default_rng(0)
    grads = [
        rng.normal(size=(terms, *shape)).astype(np.float32)
        for shape in ((16, 8), (24,))
    ]
    flat = np.concatenate([g.reshape(terms, -1) for g in grads], axis=1)
    expected = flat.astype(np.float64) @ flat.T
    mesh = mesh_of("explicit")
    with jax.set_mesh(mesh):
        laid = [
            jax.device_put(g, NamedSharding(mesh, P(*spec[: g.ndim]))) for g in grads
        ]
        found = jax.jit(mt.metrics.gramian)(laid)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


WHOLE, SPLIT = P(None), P(None, "x")


@pytest.mark.parametrize(
    ("method", "specs"),
    [
        ("mtadam", (SPLIT,)),
        ("adatask_adam", (SPLIT,)),
        ("weighted mgda", (SPLIT,)),
        pytest.param("mtadam", (WHOLE,), marks=pytest.mark.slow),
        pytest.param("adatask_adam", (WHOLE,), marks=pytest.mark.slow),
        pytest.param("weighted mgda", (WHOLE,), marks=pytest.mark.slow),
    ],
)
def test_absent_terms_on_explicit_axes(method, specs):
    tx = METHODS[method]()
    params = {"w": np.ones((16, 4), np.float32)}
    rng = np.random.default_rng(0)
    grads = {"w": rng.normal(size=(K, 16, 4)).astype(np.float32)}
    grads["w"][1] = np.nan
    present = np.array([True, False])

    def update(grads, state, params):
        return tx.update(grads, state, params, present=present)

    expected, _ = first_step(tx, grads, params, present=present)
    assert np.all(np.isfinite(expected["w"]))
    mesh = mesh_of("explicit")
    for spec in specs:
        with jax.set_mesh(mesh):
            laid, where = lay(grads, mesh, spec), lay(params, mesh, P(*spec[1:]))
            updates, _ = jax.jit(update)(laid, tx.init(where), where)
        np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-5, atol=1e-7)


def test_the_page_on_many_devices_is_right():
    names = run(python_blocks(DOCS / "many_devices.md"), "many_devices.md")
    assert names["nu"].shape == (2, 8, 32)
    assert names["nu"].sharding.spec == P(None, "data")
    assert names["grads"]["w"].shape == (DEVICES, 32)
    assert names["updates"]["w"].shape == (32,)
    where = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(names["target"])}
    assert str(P(None, "data")) in where
    assert all(np.isfinite(loss) for loss in names["losses"].values())


def inside_shard_map(name):
    """Weights of a batch of gramians, in shard_map and without."""
    weighting = {
        "mgda": mt.mgda,
        "cagrad": mt.cagrad,
        "upgrad": mt.upgrad,
        "pcgrad": lambda: mt.pcgrad(jax.random.key(0)),
        "fair_grad": mt.fair_grad,
        "aligned_mtl": mt.aligned_mtl,
    }[name]()

    def weigh(gramians):
        one = lambda gramian: weighting.update(gramian, weighting.init(4))[0]  # noqa: E731
        return jax.vmap(one)(gramians)

    mesh = mesh_of("auto")
    spread = jax.shard_map(weigh, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    return jax.jit(spread), jax.jit(weigh)


SOLVERS = ("mgda", "pcgrad", "cagrad", "upgrad", "fair_grad", "aligned_mtl")


@pytest.mark.parametrize("name", SOLVERS)
def test_loops_of_solvers_keep_their_types_inside_shard_map(name):
    # What varies over devices is part of a type there, which a loop must not change.
    gramians = jax.ShapeDtypeStruct((8, 4, 4), np.float32)
    # PCGrad's weights are a matrix.
    expected = (8, 4, 4) if name == "pcgrad" else (8, 4)
    assert inside_shard_map(name)[0].eval_shape(gramians).shape == expected


@pytest.mark.parametrize(
    "name",
    [
        "mgda",
        pytest.param("pcgrad", marks=pytest.mark.slow),
        pytest.param("cagrad", marks=pytest.mark.slow),
        pytest.param("upgrad", marks=pytest.mark.slow),
    ],
)
def test_gramian_weightings_inside_shard_map(name):
    """Each device its own problem, as in a step that is written by hand."""
    rows = np.random.default_rng(0).normal(size=(8, 4, 9)).astype(np.float32)
    gramians = np.einsum("dip,djp->dij", rows, rows)
    spread, weigh = inside_shard_map(name)
    if name == "mgda":  # whose weights are known
        expected = np.stack([min_norm_point(row)[1] for row in rows])
    else:
        expected = weigh(gramians)
    np.testing.assert_allclose(spread(gramians), expected, atol=1e-5)
