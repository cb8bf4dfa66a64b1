"""The Flax examples as a user runs them, and what they hand on to the optimizer."""

import contextlib
import importlib.util
import io
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import multiterm_optax as mt
from tests._asserts import assert_close, assert_different, assert_identical

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "flax.md").read_text(encoding="utf-8")
TERMS = ("class", "image", "size")


def example(name):
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def nnx_example():
    return example("flax_nnx")


@pytest.fixture(scope="module")
def linen_example():
    return example("flax_linen")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.uniform(0, 16, (12, 64)).astype(np.float32), rng.integers(0, 10, 12)


def page_block(word):
    """The only Python block of the page that has the word."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return block


def row_of(grads, term):
    return jax.tree.map(lambda g: np.asarray(g)[term], grads)


class Recorder:
    """An optimizer that moves nothing and keeps what it is given."""

    def __init__(self, num_terms=3):
        self.num_terms, self.traces = num_terms, 0

    def init(self, params):
        grads = jax.tree.map(lambda p: jnp.zeros((self.num_terms, *p.shape)), params)
        return {"grads": grads, "losses": dict.fromkeys(TERMS, jnp.zeros([]))}

    def update(self, grads, state, params=None, *, losses, **extra_args):
        self.traces += 1
        still = jax.tree.map(jnp.zeros_like, params)
        return still, {"grads": grads, "losses": losses}

    def transformation(self):
        return optax.GradientTransformationExtraArgs(self.init, self.update)


# --- the examples as a user runs them ----------------------------------------------


each_example = pytest.mark.parametrize("name", ["flax_linen", "flax_nnx"])


@each_example
def test_example_is_short(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60


@pytest.mark.slow  # the tests below run their steps
@each_example
def test_example_trains_every_term(name, monkeypatch):
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr("sys.argv", [str(path)])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(path), run_name="__main__")
    lines = printed.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["MTAdam", "GradNorm"]
    for line in lines:
        numbers = {k: float(v) for k, v in re.findall(r"(\w+) (\d+\.\d+)", line)}
        assert set(numbers) == {*TERMS, "accuracy"}
        # Untrained: log 10 = 2.3 for the class, some 60 for the image, accuracy 0.1.
        assert numbers["class"] < 1.5
        assert numbers["image"] < 50
        assert numbers["accuracy"] > 0.6


# --- NNX ---------------------------------------------------------------------------


@nnx.jit(static_argnames="term_losses")
def one_by_one(model, batch, *, term_losses):
    """The value and the gradient of each loss by itself, as Flax has them."""

    def alone(name):
        def loss_fn(model):
            return term_losses(model, *batch)[name]

        # Each from the same random state, so that dropout draws the same mask.
        value, grads = nnx.value_and_grad(loss_fn)(nnx.clone(model))
        return value, nnx.to_pure_dict(nnx.state(grads, nnx.Param))

    return {name: alone(name) for name in TERMS}


def test_nnx_step_hands_on_each_terms_gradient_and_loss(nnx_example, batch):
    recorder = Recorder()
    model = nnx_example.Net(nnx.Rngs(0))
    untouched = nnx.clone(model)
    optimizer = nnx.Optimizer(model, recorder.transformation(), wrt=nnx.Param)
    losses = nnx_example.train_step(model, optimizer, *batch)
    found = nnx.as_pure(optimizer.opt_state)
    expected = one_by_one(untouched, batch, term_losses=nnx_example.term_losses)
    for k, (name, (value, grads)) in enumerate(expected.items()):
        assert_close(losses[name], value, rtol=1e-6)
        assert_close(found["losses"][name], value, rtol=1e-6)
        row = row_of(nnx.to_pure_dict(found["grads"]), k)
        assert_close(row, grads, rtol=1e-4, atol=1e-6)


def test_nnx_state_moves_once_a_step_not_once_a_term(nnx_example, batch):
    recorder = Recorder()
    model = nnx_example.Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, recorder.transformation(), wrt=nnx.Param)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    draws = int(model.dropout.rngs.count[...])
    expected = np.zeros(64)
    for _ in range(3):
        nnx_example.train_step(model, optimizer, *batch)
        expected = 0.99 * expected + 0.01 * batch[0].mean(axis=0)
    np.testing.assert_allclose(model.norm.mean[...], expected, rtol=1e-5)
    assert int(model.dropout.rngs.count[...]) == draws + 3
    assert_identical(nnx.to_pure_dict(nnx.state(model, nnx.Param)), before)
    assert recorder.traces == 1
    assert int(optimizer.step[...]) == 3


class Plain(nnx.Module):
    """A model of parameters only."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 8, rngs=rngs)
        self.out = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        code = nnx.relu(self.hidden(images))
        return self.out(code), jnp.tile(code, 8), code


class Normed(Plain):
    """The same with batch statistics."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)

    def __call__(self, images):
        return super().__call__(self.norm(images))


def test_nnx_model_of_parameters_only_needs_no_split(nnx_example, batch):
    model = Plain(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, Recorder().transformation(), wrt=nnx.Param)
    recipe = compile(page_block("optimizer.update"), "flax.md", "exec")

    @nnx.jit
    def train_step(model, optimizer, batch):
        names = {"mt": mt, "model": model, "optimizer": optimizer, "batch": batch}
        names["losses_fn"] = lambda model, batch: nnx_example.term_losses(model, *batch)
        exec(recipe, names)

    train_step(model, optimizer, batch)
    found = nnx.as_pure(optimizer.opt_state)
    expected = one_by_one(model, batch, term_losses=nnx_example.term_losses)
    for k, (name, (value, grads)) in enumerate(expected.items()):
        assert_close(found["losses"][name], value, rtol=1e-6)
        row = row_of(nnx.to_pure_dict(found["grads"]), k)
        assert_close(row, grads, rtol=1e-4, atol=1e-6)


def test_nnx_model_with_more_than_parameters_needs_the_split(nnx_example, batch):
    model = nnx_example.Net(nnx.Rngs(0))
    # The counter of dropout's draws cannot be differentiated.
    with pytest.raises(TypeError, match=r"argument 0.*count.*must be real floating"):
        mt.value_and_term_grads(nnx_example.term_losses)(model, *batch)
    # Batch statistics alone are floats: a copy of the model keeps the new ones.
    model = Normed(nnx.Rngs(0))

    @nnx.jit
    def losses_of(model):
        return mt.value_and_term_grads(nnx_example.term_losses)(model, *batch)[0]

    losses_of(model)
    np.testing.assert_array_equal(model.norm.mean[...], np.zeros(64))
    nnx.jit(nnx_example.term_losses)(model, *batch)
    np.testing.assert_allclose(
        model.norm.mean[...], 0.01 * batch[0].mean(axis=0), rtol=1e-5
    )


# --- linen -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def make_state(linen_example, batch):
    net = linen_example.Net()
    params = jax.jit(net.init)(jax.random.key(0), batch[0])
    create = linen_example.TrainState.create
    return lambda tx: create(apply_fn=net.apply, params=params, tx=tx)


def test_linen_step_hands_on_each_terms_gradient_and_loss(
    linen_example, batch, make_state
):
    state = make_state(Recorder().transformation())
    moved, losses = linen_example.step_on_losses(state, *batch)
    assert_identical(moved.params, state.params)
    assert int(moved.step) == 1

    @jax.jit
    def alone(params):
        return [
            jax.value_and_grad(
                lambda p, name=name: linen_example.losses_fn(p, state, *batch)[name]
            )(params)
            for name in TERMS
        ]

    each = alone(state.params)
    for k, (name, (value, expected)) in enumerate(zip(TERMS, each, strict=True)):
        assert_close(losses[name], value, rtol=1e-6)
        assert_close(moved.opt_state["losses"][name], value, rtol=1e-6)
        row = row_of(moved.opt_state["grads"], k)
        assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_linen_apply_gradients_serves_where_no_losses_are_read(
    linen_example, batch, make_state
):
    sgd = optax.sgd(1e-2, momentum=0.9)
    tx = optax.chain(mt.balance_by_norm(3), mt.sum_terms(), sgd)
    state = make_state(tx)
    plain, extra = state, state
    for _ in range(2):
        plain, _ = linen_example.step(plain, *batch)
        extra, _ = linen_example.step_on_losses(extra, *batch)
    assert int(plain.step) == int(extra.step) == 2
    assert_different(plain.params, state.params)
    assert_close(plain.params, extra.params, rtol=1e-6, atol=1e-7)
    assert_close(plain.opt_state, extra.opt_state, rtol=1e-6, atol=1e-7)


def test_linen_apply_gradients_does_not_serve_where_they_are(
    linen_example, batch, make_state
):
    tx = mt.weighted(mt.gradnorm(), optax.adam(1e-2), num_terms=3)
    state = make_state(tx)
    with pytest.raises(ValueError, match=r"weighted: .*losses=losses.*found none"):
        linen_example.step(state, *batch)


# --- the page ----------------------------------------------------------------------


def test_page_recipe_for_linen_with_batch_statistics(linen_example, batch):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            images = nn.BatchNorm(use_running_average=not train)(images)
            code = nn.relu(nn.Dense(8)(images))
            return nn.Dense(10)(code), nn.Dense(64)(code), code

    net = Normed()
    init = jax.jit(net.init, static_argnames="train")
    variables = init(jax.random.key(0), batch[0], train=True)
    names = {**vars(linen_example), "net": net}
    exec(compile(page_block("batch_stats"), "flax.md", "exec"), names)
    state = linen_example.TrainState.create(
        apply_fn=net.apply,
        params=variables["params"],
        tx=Recorder().transformation(),
    )
    stats = variables["batch_stats"]
    expected = np.zeros(64)
    for _ in range(2):
        state, stats, losses = names["step"](state, stats, *batch)
        expected = 0.99 * expected + 0.01 * batch[0].mean(axis=0)
    (norm,) = stats.values()
    np.testing.assert_allclose(norm["mean"], expected, rtol=1e-5)
    assert set(losses) == set(TERMS)
    assert_identical(state.opt_state["losses"], losses)
