"""Flax NNX: three loss terms that fight over one layer, on scikit-learn's digits."""

import argparse

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import multiterm_optax as mt


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.code = nnx.Linear(64, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.classify = nnx.Linear(32, 10, rngs=rngs)
        self.draw = nnx.Linear(32, 64, rngs=rngs)

    def __call__(self, images):
        code = self.dropout(nnx.relu(self.code(self.norm(images))))
        return self.classify(code), self.draw(code), code


def term_losses(model, images, labels):
    logits, drawn, code = model(images)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    image = jnp.mean((drawn - images) ** 2)  # pixels up to 16: it is loud
    return {"class": errors.mean(), "image": image, "size": jnp.mean(code**2)}


@nnx.jit
def train_step(model, optimizer, images, labels):
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def losses_fn(params):
        model = nnx.merge(graph, params, rest, copy=True)
        return term_losses(model, images, labels), nnx.state(model, nnx.Not(nnx.Param))

    (losses, rest), grads = mt.value_and_term_grads(losses_fn, has_aux=True)(params)
    nnx.update(model, rest)  # batch statistics, dropout's random state
    optimizer.update(model, grads, losses=losses)
    return losses


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    images, labels = load_digits(return_X_y=True)
    gradnorm = mt.weighted(mt.gradnorm(), optax.adam(1e-2), num_terms=3)
    for name, tx in {"MTAdam": mt.mtadam(1e-2, 3), "GradNorm": gradnorm}.items():
        model, losses = Net(nnx.Rngs(0)), {}
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for rows in np.random.default_rng(0).integers(1400, size=(100, 70)):
            losses = train_step(model, optimizer, images[rows], labels[rows])
        model.eval()
        right = model(images[1400:])[0].argmax(-1) == labels[1400:]
        losses |= {"accuracy": right.mean()}
        print(name, *(f"{term} {x:.3f}" for term, x in losses.items()))
