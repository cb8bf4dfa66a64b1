"""What every exported transformation keeps to, whatever the method.

The factories are found by tests/_factories.py: a new one is covered without a change
here. Per-term gradients come in, every leaf [K, *p]; stages of ``transforms`` return
the same shapes, all others [*p].
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax
from tests import _factories
from tests._asserts import (
    CountedTraces,
    assert_close,
    assert_finite,
    assert_identical,
    assert_param_shapes,
    assert_same_signature,
    assert_same_structure,
    assert_strong_types,
    assert_term_shapes,
    assert_zero,
    named_leaves,
)
from tests._factories import TERMS, example_losses, example_params
from tests._params import some

FACTORIES = _factories.factories()
WITH_LEARNING_RATE = [f for f in FACTORIES if f.takes("learning_rate")]


def by_default(chosen):
    """Each factory, of which the others run with the slow tests."""
    names = {f.name for f in FACTORIES if chosen(f)}
    each = some(FACTORIES, names, name=lambda factory: factory.name)
    return pytest.mark.parametrize("factory", each)


each_factory = by_default(lambda factory: True)
STEPS = 5


# Data come from NumPy: nothing to compile for it.


def make_grads(params, terms=TERMS, steps=STEPS):
    """Leaves [steps, K, *p] in NumPy, each term at a size of its own."""
    rng = np.random.default_rng(1)
    sizes = 10.0 ** np.arange(-1, terms - 1)

    def draw(leaf):
        noise = rng.normal(size=(steps, terms, *leaf.shape))
        over = sizes.reshape(-1, *(1,) * leaf.ndim)
        return (over * noise).astype(leaf.dtype)

    return jax.tree.map(draw, params)


def at(tree, step):
    """One step's gradients, as JAX arrays."""
    return jax.tree.map(lambda x: jnp.asarray(x[step]), tree)


@functools.cache
def _compiled(factory, x64, **options):
    del x64  # a program of its own for each precision
    tx = factory.build(**options)
    counted = CountedTraces(tx.update)
    return tx, counted, jax.jit(counted)


def compiled(factory, **options):
    """A transformation and its jitted update, compiled once for all the tests."""
    return _compiled(factory, bool(jax.config.jax_enable_x64), **options)


def run(factory, grads, params, losses, **options):
    """Updates of every step, stacked, and the final state."""
    tx, _, update = compiled(factory, **options)
    return run_with(update, tx, grads, params, losses)


def run_with(update, tx, grads, params, losses):
    """The same with an update of one's own."""
    state, history = tx.init(params), []
    for step in range(STEPS):
        updates, state = update(at(grads, step), state, params, losses=losses)
        history.append(updates)
    return jax.tree.map(lambda *x: np.stack(x), *history), state


def test_every_stage_has_a_contract():
    covered = _factories.TRANSFORMATIONS.keys() | _factories.OTHER_STAGES
    assert set(_factories.stages()) <= covered
    assert {f.name for f in FACTORIES} >= {
        "balance_by_norm",
        "per_term",
        "sum_terms",
        "scale_by_max_adam",
        "mtadam",
        "adatask",
        "adatask_adam",
        "adatask_rmsprop",
        "adatask_adagrad",
    }


def test_every_top_level_function_comes_from_a_stage():
    by_stage = [
        function
        for stage in _factories.stages()
        for function in _factories.exported_functions(stage).values()
    ]
    for name, value in vars(multiterm_optax).items():
        if not name.startswith("_") and inspect.isfunction(value):
            assert value in by_stage, f"{name} is exported by no stage"


@each_factory
def test_builds_an_optax_transformation(factory):
    tx = factory.build()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)


def assert_shapes(factory, updates, params):
    if factory.keeps_terms:
        assert_term_shapes(updates, params, TERMS)
    else:
        assert_param_shapes(updates, params)


@each_factory
@pytest.mark.parametrize(
    "dtype",
    # Float32 is below, and float16 is like bfloat16: tests/test_precision.py runs it.
    [
        "bfloat16",
        "float64",
        pytest.param("float32", marks=pytest.mark.slow),
        pytest.param("float16", marks=pytest.mark.slow),
    ],
)
def test_shapes_dtypes_and_a_stable_state(factory, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = example_params(dtype)
        grads = make_grads(params)
        tx, counted, update = compiled(factory)
        start = jax.eval_shape(tx.init, params)
        assert_strong_types(start)
        # Tracing finds the types; tests/test_precision.py has the numbers in these.
        numbers = dtype == "float64"
        if numbers:
            traced, start = start, tx.init(params)
            assert_same_signature(start, traced)
        update = update if numbers else update.eval_shape
        state, losses, traced = start, example_losses(dtype), None
        for step in range(STEPS):
            updates, state = update(at(grads, step), state, params, losses=losses)
            traced = traced or counted.count
            assert_shapes(factory, updates, params)
            assert_same_signature(state, start)
            if numbers:
                assert_finite(updates)
        assert counted.count == traced, "traced again after the first step"


# Each of their operations is a program. The examples in the docstrings of all factories
# are run outside jit, too.
EAGER = {"sum_terms", "weighted"}


@by_default(lambda factory: factory.name in EAGER)
def test_one_program_whether_eager_or_jitted(factory, x64):
    params = example_params(jnp.float64)
    grads, losses = make_grads(params), example_losses(jnp.float64)
    inner = {"inner": optax.sgd(0.1)} if factory.name == "weighted" else {}
    tx, *_ = compiled(factory, **inner)
    jitted, jitted_state = run(factory, grads, params, losses, **inner)
    eager, eager_state = run_with(tx.update, tx, grads, params, losses)
    assert_close(eager, jitted, rtol=1e-12)
    assert_close(eager_state, jitted_state, rtol=1e-12)


# Scans of the others are run in tests/test_precision.py.
@by_default(lambda factory: factory.stage == "wrappers")
def test_a_scan_carries_the_state(factory, x64):
    # A scan is a program of the step's kind, if the state keeps its shapes and dtypes.
    params, losses = example_params(jnp.float64), example_losses(jnp.float64)
    tx, grads = factory.build(), make_grads(params)

    def step(state, grad):
        updates, state = tx.update(grad, state, params, losses=losses)
        return state, updates

    start = tx.init(params)
    last, updates = jax.eval_shape(lambda s: jax.lax.scan(step, s, grads), start)
    assert_same_signature(last, start)
    assert all(leaf.shape[0] == STEPS for leaf in jax.tree.leaves(updates))


@functools.cache
def jitted_inits():
    """The first states of all factories, from one program."""
    params = example_params(jnp.float32)
    made = {factory.name: factory.build() for factory in FACTORIES}
    return jax.jit(lambda: {name: tx.init(params) for name, tx in made.items()})()


@each_factory
def test_init_is_the_same_under_jit(factory):
    eager = factory.build().init(example_params(jnp.float32))
    jitted = jitted_inits()[factory.name]
    assert_same_signature(jitted, eager)
    assert_identical(jitted, eager)


# A method that compares with one term (``anchor``) chooses the first that speaks. Where
# another one becomes the first, that term is named.
@each_factory
@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1)], ids=str)
def test_order_of_the_terms_does_not_matter(factory, x64, order):
    params = example_params(jnp.float64)
    grads, losses = make_grads(params), example_losses(jnp.float64)
    renamed = {"anchor": order.index(0)}
    if order[0] == 0 or not factory.takes("anchor"):
        renamed = {}
    picked = np.array(order)
    plain, _ = run(factory, grads, params, losses)
    permuted, _ = run(
        factory,
        jax.tree.map(lambda g: g[:, picked], grads),
        params,
        jnp.asarray(np.asarray(losses)[picked]),
        **renamed,
    )
    expected = plain
    if factory.keeps_terms:
        expected = jax.tree.map(lambda u: u[:, picked], plain)
    assert_close(permuted, expected, rtol=1e-11)


@each_factory
def test_unknown_extra_arguments_and_by_default_params_change_nothing(factory):
    """No default decays weights: ``update`` works without ``params``."""
    tx, params = factory.build(), example_params(jnp.float32)
    grads, losses, start = at(make_grads(params), 0), example_losses(), tx.init(params)

    def program(*given, **extra):
        def step(grads, state):
            return tx.update(grads, state, *given, losses=losses, **extra)

        traced, (updates, state) = jax.make_jaxpr(step, return_shape=True)(grads, start)
        assert_shapes(factory, updates, params)
        assert_same_signature(state, start)
        return str(traced)

    plain = program()
    assert program(params) == plain
    assert program(value=1.0, something_else="x") == plain


# Most wrappers hand the number of terms on, and look at it no further.
@by_default(lambda factory: factory.stage != "wrappers" or factory.name == "weighted")
def test_one_term(factory):
    params = example_params(jnp.float32)
    grads = make_grads(params, terms=1)
    options = {"num_terms": 1} if factory.takes("num_terms") else {}
    updates, state = run(factory, grads, params, jnp.asarray([0.5]), **options)
    assert_finite(updates)
    assert_finite(state)
    lead = (STEPS, 1) if factory.keeps_terms else (STEPS,)
    for found, param in zip(
        jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    ):
        assert found.shape == lead + param.shape
        assert np.any(np.asarray(found) != 0)


# In float16, where squares vanish sooner, tests/test_precision.py has the same.
@each_factory
def test_zero_gradients_give_zero_updates(factory, x64):
    params = example_params(jnp.float64)
    grads = jax.tree.map(np.zeros_like, make_grads(params))
    updates, state = run(factory, grads, params, example_losses(jnp.float64))
    assert_zero(updates)
    assert_finite(state)


@each_factory
def test_zero_gradients_after_others_stay_finite(factory, x64):
    params = example_params(jnp.float64)
    grads = make_grads(params)
    for leaf in jax.tree.leaves(grads):
        leaf[1:] = 0
    updates, state = run(factory, grads, params, example_losses(jnp.float64))
    assert_finite(updates)
    assert_finite(state)


@each_factory
def test_state_can_be_donated(factory, x64):
    # XLA refuses to be given one buffer twice: no array may stand twice in the state.
    # Which program they are given to does not matter.
    params = example_params(jnp.float64)
    tx, _, update = compiled(factory)

    @functools.partial(jax.jit, donate_argnums=0)
    def give(state):
        return jax.tree.map(lambda x: x + jnp.zeros((), x.dtype), state)

    start = tx.init(params)
    given = give(start)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    grad = at(make_grads(params), 0)
    _, state = update(grad, given, params, losses=example_losses(jnp.float64))
    assert_finite(give(state))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@each_factory
def test_map_params_reaches_what_is_shaped_like_parameters(factory):
    tx, params = factory.build(), example_params(jnp.float32)
    state = tx.init(params)
    mapped = optax.tree.map_params(
        tx, lambda x: x + 1, state, transform_non_params=lambda x: x
    )
    assert_same_structure(mapped, state)
    paths = [path for path, _ in named_leaves(params)]
    for (path, old), new in zip(
        named_leaves(state), jax.tree.leaves(mapped), strict=True
    ):
        like_params = any(path.endswith(p) for p in paths)
        assert_identical(new, old + 1 if like_params else old)


@each_factory
def test_missing_term_axis_is_an_error(factory):
    tx, params = factory.build(), example_params(jnp.float32)
    with pytest.raises(ValueError, match="term axis is missing"):
        tx.update(params, tx.init(params), params, losses=example_losses())


@pytest.mark.parametrize(
    "factory", [f for f in FACTORIES if f.takes("num_terms")], ids=lambda f: f.name
)
def test_wrong_number_of_terms_is_an_error(factory, own_errors):
    for bad in (0, -1, True, 2.5):
        with pytest.raises((TypeError, ValueError), match="num_terms must be"):
            factory.build(num_terms=bad)
    tx, params = factory.build(), example_params(jnp.float32)
    grads = at(make_grads(params, terms=TERMS + 1), 0)
    losses = jnp.ones(TERMS + 1)
    with pytest.raises(ValueError, match=f"num_terms={TERMS}"):
        tx.update(grads, tx.init(params), params, losses=losses)


@pytest.mark.parametrize("factory", WITH_LEARNING_RATE, ids=lambda f: f.name)
def test_injected_hyperparameters_give_the_same_steps(factory, x64):
    params = example_params(jnp.float64)
    grads, losses = make_grads(params), example_losses(jnp.float64)
    plain, _ = run(factory, grads, params, losses)
    injected = optax.inject_hyperparams(factory.function, static_args=("num_terms",))(
        **factory.required()
    )
    update = jax.jit(injected.update)
    found, state = run_with(update, injected, grads, params, losses)
    assert_close(found, plain, rtol=1e-9)
    assert float(state.hyperparams["learning_rate"]) == 0.1
    floats = [
        name
        for name, parameter in inspect.signature(factory.function).parameters.items()
        if isinstance(parameter.default, float)
    ]
    assert set(floats) <= set(state.hyperparams)
    # The step is in proportion to the learning rate, another number for one program.
    slower = injected.init(params)
    rate = jnp.asarray(0.05, slower.hyperparams["learning_rate"].dtype)
    slower.hyperparams["learning_rate"] = rate
    half, _ = update(at(grads, 0), slower, params, losses=losses)
    assert_close(half, jax.tree.map(lambda u: u[0] / 2, plain), rtol=1e-7)


@pytest.mark.parametrize("factory", WITH_LEARNING_RATE, ids=lambda f: f.name)
def test_learning_rate_may_be_a_schedule(factory, x64):
    params = example_params(jnp.float64)
    grads, losses = make_grads(params), example_losses(jnp.float64)
    whole, _ = run(factory, grads, params, losses)  # at the rate 0.1
    schedule = optax.constant_schedule(0.05)
    scheduled, state = run(factory, grads, params, losses, learning_rate=schedule)
    # Optax evaluates schedules in float32.
    assert_close(scheduled, jax.tree.map(lambda u: u / 2, whole), rtol=1e-6)
    assert_strong_types(state)
