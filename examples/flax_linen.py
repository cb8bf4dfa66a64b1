"""Flax linen: three loss terms that fight over one layer, on scikit-learn's digits."""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import multiterm_optax as mt


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        code = nn.relu(nn.Dense(32)(images / 16))
        return nn.Dense(10)(code), nn.Dense(64)(code), code


def losses_fn(params, state, images, labels):
    logits, drawn, code = state.apply_fn(params, images)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    image = jnp.mean((drawn - images) ** 2)  # pixels up to 16: it is loud
    return {"class": errors.mean(), "image": image, "size": jnp.mean(code**2)}


def apply_gradients(state, grads, **extra_args):
    """``state.apply_gradients`` for an optimizer that takes extra arguments."""
    updates, inner = state.tx.update(grads, state.opt_state, state.params, **extra_args)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=inner)


@jax.jit
def step(state, *batch):
    losses, grads = mt.value_and_term_grads(losses_fn)(state.params, state, *batch)
    return state.apply_gradients(grads=grads), losses


@jax.jit
def step_on_losses(state, *batch):
    losses, grads = mt.value_and_term_grads(losses_fn)(state.params, state, *batch)
    return apply_gradients(state, grads, losses=losses), losses


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    images, labels = load_digits(return_X_y=True)
    mtadam = mt.mtadam(1e-2, num_terms=3)
    gradnorm = mt.weighted(mt.gradnorm(), optax.adam(1e-2), num_terms=3)
    for name, tx, f in ("MTAdam", mtadam, step), ("GradNorm", gradnorm, step_on_losses):
        params, losses = Net().init(jax.random.key(0), images[:1]), {}
        state = TrainState.create(apply_fn=Net().apply, params=params, tx=tx)
        for rows in jax.random.randint(jax.random.key(1), (100, 70), 0, 1400):
            state, losses = f(state, images[rows], labels[rows])
        logits, _, _ = state.apply_fn(state.params, images[1400:])
        losses |= {"accuracy": jnp.mean(logits.argmax(-1) == labels[1400:])}
        print(name, *(f"{term} {x:.3f}" for term, x in losses.items()))
