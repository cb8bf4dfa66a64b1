"""Stop and resume, bit for bit: MTAdam with Orbax, on scikit-learn's digits.

Run ``python examples/checkpoint.py FOLDER 3``, then again with 6 in place of 3 epochs.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from sklearn.datasets import load_digits

import multiterm_optax as mt

tx = mt.mtadam(1e-2, num_terms=2)


def start():
    key, init = jax.random.key(0), jax.nn.initializers.lecun_normal()
    shapes = {"code": (64, 32), "classify": (32, 10), "draw": (32, 64)}
    params = {name: init(key, shape) for name, shape in shapes.items()}
    return {"params": params, "state": tx.init(params)}


def losses_fn(params, images, labels):
    code = jax.nn.relu(images / 16 @ params["code"])
    logits, drawn = code @ params["classify"], code @ params["draw"]
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return {"class": errors.mean(), "image": jnp.mean((drawn - images) ** 2)}


@jax.jit
def train_step(training, images, labels):
    params = training["params"]
    losses, grads = mt.value_and_term_grads(losses_fn)(params, images, labels)
    updates, state = tx.update(grads, training["state"], params, losses=losses)
    return {"params": optax.apply_updates(params, updates), "state": state}, losses


def restore(manager, start):
    target = jax.eval_shape(start)  # structure, shapes, dtypes; no array is made
    return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(target))


def train(folder, epochs):
    images, labels = load_digits(return_X_y=True)
    losses = {}
    with ocp.CheckpointManager(Path(folder).absolute()) as manager:
        done = manager.latest_step() or 0
        training = restore(manager, start) if done else start()
        for epoch in range(done + 1, epochs + 1):
            # The batches follow from the epoch's number, so that they go on too.
            for rows in np.random.default_rng(epoch).permutation(1400).reshape(-1, 70):
                training, losses = train_step(training, images[rows], labels[rows])
            manager.save(epoch, args=ocp.args.StandardSave(training))
            print(f"epoch {epoch}:", *(f"{k} {v:.3f}" for k, v in losses.items()))
    return training


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="where the checkpoints are, and will be")
    parser.add_argument("epochs", type=int, help="how many the whole run has")
    train(**vars(parser.parse_args()))
