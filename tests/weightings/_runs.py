"""Weightings over many steps, and the problems they are run on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def random_losses(rng, steps, terms):
    """Positive losses that wander, each on a scale of its own."""
    drift = np.cumsum(0.2 * rng.normal(size=(steps, terms)), axis=0)
    return np.exp(drift + rng.normal(size=terms))


def filled(batch, size=64):
    """The batch, repeated to a multiple of ``size``: one program serves all batches."""
    return np.resize(batch, (-(-len(batch) // size) * size, *batch.shape[1:]))


def run(weighting, losses, gramians=None):
    """Weights that each step uses [steps, K], and the last state."""
    return run_each([weighting], losses, gramians)[0]


def run_each(weightings, losses, gramians=None):
    """The same of several, by one program in which they share what is the same."""
    dtype = jnp.result_type(float)
    given = jax.tree.map(lambda x: np.asarray(x, dtype), (losses, gramians))
    terms = given[0].shape[1]

    def steps(weighting, data):
        def step(state, data):
            loss, gramian = data
            weights, state = weighting.update(gramian, state, losses=loss)
            return state, weights

        state, weights = jax.lax.scan(step, weighting.init(terms), data)
        return weights, state

    # The numbers are arguments: as constants they would make each run a new program.
    scans = jax.jit(lambda data: [steps(each, data) for each in weightings])
    return jax.tree.map(np.asarray, scans(given))


def deviation(found, expected):
    """Largest error of a step, relative to the largest weight of that step."""
    gaps = np.max(np.abs(found - expected), axis=1)
    return float(np.max(gaps / np.max(np.abs(expected), axis=1)))


def keeps_parameters():
    """A transformation whose state holds the very parameters it was given."""

    def update(updates, state, params=None):
        del state
        return jax.tree.map(lambda g: -0.01 * g, updates), params

    return optax.GradientTransformation(lambda params: params, update)


def donate(weighting, steps=3):
    """A few steps that donate the state: no array may stand twice in it."""
    step = jax.jit(
        lambda state: weighting.update(jnp.eye(2), state, losses=jnp.ones(2)),
        donate_argnums=0,
    )
    state = weighting.init(2)
    for _ in range(steps):
        weights, state = step(state)
    return weights


def split_rosenbrock(xy):
    """The two terms of Rosenbrock's function, as SoftAdapt's Eq. 7 splits it."""
    x, y = xy
    return jnp.stack([(1 - x) ** 2, 100 * (y - x**2) ** 2])


def descend(weighting, rate, steps, start=(-0.5, 0.5)):
    """Plain gradient descent on the weighted sum, from the losses alone.

    Returns the losses of every step [steps, 2], the last point and the last weights.
    """

    def step(carry, _):
        xy, state = carry
        losses, pull = jax.vjp(split_rosenbrock, xy)
        weights, state = weighting.update(None, state, losses=losses)
        (direction,) = pull(weights.astype(losses.dtype))
        return (xy - rate * direction, state), (losses, weights)

    carry = jnp.asarray(start, jnp.result_type(float)), weighting.init(2)
    run = jax.jit(lambda c: jax.lax.scan(step, c, None, length=steps))
    (xy, _), (losses, weights) = run(carry)
    return np.asarray(losses), np.asarray(xy), np.asarray(weights)
