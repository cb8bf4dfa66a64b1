"""A run that is stopped, saved, and continued by another process is the same run."""

import contextlib
import importlib.util
import io
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import multiterm_optax as mt
from tests._asserts import assert_different, assert_identical, assert_same_signature

ROOT = Path(__file__).resolve().parent.parent
K, STOP, END = 2, 7, 11
DEVICE = jax.devices()[0]
ADAM = optax.adam(1e-2)


# A state of each kind: moments, statistics of an epoch, a history, leaves' own weights,
# momenta of every term, and keys of a weighting and of an aggregator.
METHODS = {
    "mtadam": mt.mtadam(1e-2, K),
    # Stopped in the second epoch, whose bounds come from the first.
    "adaptive_mgda": mt.adaptive_mgda(ADAM, K, steps_per_epoch=5),
    "weighted softadapt": mt.weighted(mt.softadapt(history=3), ADAM, K),
    "weighted random": mt.weighted(mt.random_weights(jax.random.key(3)), ADAM, K),
    "chain of stages": optax.chain(
        mt.reweight(mt.gradnorm(), K, groups="leaf"),
        mt.per_term(optax.sgd(1.0, momentum=0.5), K),
        mt.grad_drop(jax.random.key(4)),
        ADAM,
    ),
}


def example(name):
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(tx):
    rng = np.random.default_rng(0)
    params = {
        "in": rng.normal(size=(4, 5)).astype(np.float32),
        "out": (rng.normal(size=(5, K)).astype(np.float32), np.zeros(K, np.float32)),
    }
    return {"params": params, "state": tx.init(params)}


@jax.jit
def start_all():
    return {name: start(tx) for name, tx in METHODS.items()}


def losses_fn(params, batch):
    weight, bias = params["out"]
    found = jnp.tanh(batch @ params["in"]) @ weight + bias
    goals = jnp.stack([batch[:, 0], 10 * jnp.sin(batch[:, 1])], axis=1)
    return jnp.mean((found - goals) ** 2, axis=0)


def step(tx, params, state, batch):
    losses, grads = mt.value_and_term_grads(losses_fn)(params, batch)
    updates, state = tx.update(grads, state, params, losses=losses)
    return {"params": optax.apply_updates(params, updates), "state": state}


@jax.jit
def step_all(training, batch):
    return {
        name: step(METHODS[name], **training[name], batch=batch) for name in METHODS
    }


def advance_all(training, first, last):
    """Takes the steps after step ``first``, up to step ``last``."""
    for t in range(first, last):
        batch = np.random.default_rng(t).normal(size=(16, 4)).astype(np.float32)
        training = step_all(training, batch)
    return training


def continue_in_this_process(folder):
    """What the other process does: it has the folder and this file, nothing else."""
    checkpoint = example("checkpoint")
    with ocp.CheckpointManager(folder / "methods") as manager:
        restored = checkpoint.restore(manager, start_all)
    ended = advance_all(restored, STOP, END)
    with contextlib.redirect_stdout(io.StringIO()):
        digits = checkpoint.train(folder / "digits", epochs=2)
    leaves = jax.tree.map(np.asarray, [restored, ended, digits])
    (folder / "ended.pickle").write_bytes(pickle.dumps(leaves))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run without a break, and what another process made of its first half."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint = example("checkpoint")
    # On a named device, as what is restored: the same compiled step then serves both.
    stopped = advance_all(jax.device_put(start_all(), DEVICE), 0, STOP)
    with ocp.CheckpointManager(folder / "methods") as manager:
        manager.save(STOP, args=ocp.args.StandardSave(stopped))
    with contextlib.redirect_stdout(io.StringIO()):
        checkpoint.train(folder / "digits", epochs=1)
    # As many devices as here, so that the same compiled step serves both processes.
    devices = {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    environment = os.environ | devices | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.test_checkpoint", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    ended = advance_all(stopped, STOP, END)
    with contextlib.redirect_stdout(io.StringIO()):
        digits = checkpoint.train(folder / "unbroken", epochs=2)
    assert process.wait(timeout=300) == 0
    other = pickle.loads((folder / "ended.pickle").read_bytes())
    return [stopped, ended, digits], other


@pytest.mark.parametrize("name", METHODS)
def test_another_process_reads_what_was_saved(runs, name):
    (stopped, _, _), (restored, _, _) = runs
    assert_same_signature(restored[name], stopped[name])
    assert_identical(restored[name], stopped[name])


@pytest.mark.parametrize("name", METHODS)
def test_another_process_goes_on_as_without_the_break(runs, name):
    (stopped, ended, _), (_, continued, _) = runs
    assert_identical(continued[name], ended[name])
    assert_different(continued[name]["params"], stopped[name]["params"])


@pytest.fixture(scope="module")
def forgetful(runs):
    """The rest of the run from the parameters alone."""
    (stopped, _, _), _ = runs
    states = {name: {"state": new["state"]} for name, new in start_all().items()}
    again = {name: stopped[name] | states[name] for name in METHODS}
    return advance_all(jax.device_put(again, DEVICE), STOP, END)


@pytest.mark.parametrize("name", METHODS)
def test_the_state_is_needed_to_go_on(runs, forgetful, name):
    (_, ended, _), _ = runs
    assert_different(forgetful[name]["params"], ended[name]["params"])


def test_example_goes_on_in_another_process(runs):
    (_, _, unbroken), (_, _, continued) = runs
    assert_identical(continued, unbroken)


# --- the page ----------------------------------------------------------------------


def page_block(word):
    """The only Python block of the page that has the word."""
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return compile(block, "checkpoints.md", "exec")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 16, (12, 64)).astype(np.float32)


def test_linen_state_goes_on(tmp_path, images):
    linen = example("flax_linen")
    tx = mt.weighted(mt.softadapt(history=2), ADAM, K)
    names = {"net": linen.Net(), "images": images, "tx": tx, "jax": jax, "ocp": ocp}
    params = jax.jit(linen.Net().init)(jax.random.key(1), images)
    state = linen.TrainState.create(apply_fn=None, params=params, tx=tx)
    state = state.replace(step=3, opt_state=jax.tree.map(np.cos, state.opt_state))
    with ocp.CheckpointManager(tmp_path) as manager:
        names |= {"manager": manager, "state": state, "TrainState": linen.TrainState}
        exec(page_block("TrainState"), names)
    restored = names["state"]
    assert restored is not state
    assert restored.tx is tx
    assert_identical(
        (restored.step, restored.params, restored.opt_state),
        (state.step, state.params, state.opt_state),
    )


def test_nnx_model_and_optimizer_go_on(tmp_path, images):
    from flax import nnx  # the other process, above, starts faster without

    example_nnx, labels = example("flax_nnx"), np.arange(12) % 10
    tx = mt.weighted(mt.softadapt(history=2), ADAM, num_terms=3)
    model = example_nnx.Net(nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for made in (model, optimizer):  # on a named device, as above
        nnx.update(made, jax.device_put(nnx.state(made), DEVICE))
    example_nnx.train_step(model, optimizer, images, labels)
    names = {"Net": example_nnx.Net, "tx": tx, "nnx": nnx, "ocp": ocp}
    with ocp.CheckpointManager(tmp_path) as manager:
        names |= {"manager": manager, "model": model, "optimizer": optimizer}
        exec(page_block("nnx.Optimizer"), names)
    assert names["model"] is not model
    for pair in ((model, optimizer), (names["model"], names["optimizer"])):
        example_nnx.train_step(*pair, images, labels)  # draws dropout's next mask
    for new, old in ((names["model"], model), (names["optimizer"], optimizer)):
        new, old = (nnx.state(x, nnx.Not(nnx.RngKey)) for x in (new, old))
        assert_identical(nnx.to_pure_dict(new), nnx.to_pure_dict(old))


def norms(num_terms):
    """A state of one leaf, so that a refusal leaves no other leaf half read."""
    return {"state": mt.balance_by_norm(num_terms).init(jnp.zeros(2))}


def test_a_target_that_does_not_fit_is_refused(tmp_path):
    restore = example("checkpoint").restore
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave(norms(K)))
        manager.wait_until_finished()
        with pytest.raises(ValueError, match="not compatible with the stored shape"):
            restore(manager, partial(norms, K + 1))
        with pytest.raises(ValueError, match="structure"):
            restore(manager, partial(start, ADAM))
        # No target: the named tuple is gone, which the page warns of.
        restored = manager.restore(1, args=ocp.args.StandardRestore())
    assert isinstance(restored["state"], dict)
    assert isinstance(norms(K)["state"], tuple)


if __name__ == "__main__":
    continue_in_this_process(Path(sys.argv[1]))
