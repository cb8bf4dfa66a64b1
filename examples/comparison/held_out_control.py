"""Reinforcement learning on which nothing of the library was chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from problem import Problem, dense_init

GRAVITY, CART, POLE, LENGTH, FORCE, MOMENT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
# Beyond these the episode ends: metres, and 12 degrees.
TRACK, TILT = 2.4, 12 * np.pi / 180
DISCOUNT, LAMBDA, ENTROPY = 0.99, 0.95, 0.01
LONGEST = 500  # steps of an episode
WIDEST = 0.8  # starts, in shares of the limits and of speeds of 1


def move(state, right):
    """CartPole of Barto, Sutton and Anderson (1983), as in Gymnasium: [N, 4], [N]."""
    x, speed, angle, turning = state.T
    force = jnp.where(right, FORCE, -FORCE)
    sine, cosine, mass = jnp.sin(angle), jnp.cos(angle), CART + POLE
    push = (force + POLE * LENGTH * turning**2 * sine) / mass
    inertia = LENGTH * (4 / 3 - POLE * cosine**2 / mass)
    spin = (GRAVITY * sine - cosine * push) / inertia
    change = push - POLE * LENGTH * spin * cosine / mass
    state = [x, speed, angle, turning]
    slopes = [speed, change, turning, spin]
    moved = [now + MOMENT * slope for now, slope in zip(state, slopes, strict=True)]
    return jnp.stack(moved, axis=1)


def fell(state):
    return (jnp.abs(state[:, 0]) > TRACK) | (jnp.abs(state[:, 2]) > TILT)


def network(params, state):
    """Two logits and a value from one trunk."""
    *hidden, last = params
    for layer in hidden:
        state = jnp.tanh(state @ layer["w"] + layer["b"])
    outputs = state @ last["w"] + last["b"]
    return outputs[..., :2], outputs[..., 2]


def choose(params, state, uniform):
    """Goes right with the policy's probability."""
    logits, _ = network(params, state)
    return uniform < jax.nn.softmax(logits)[:, 1]


def actor_critic(short: bool) -> Problem:
    """CartPole by an actor and a critic that share a trunk, from short rollouts.

    Terms: the policy's, with generalised advantages and an entropy bonus of 0.01, and
    the squared error of the values, which are as large as 100. The policy's term is no
    error: its value changes sign and says little of what is learned. Each step plays 32
    carts for 32 moments, from random states. The score is 1 - mean length of an
    episode / 500, under the policy's random choices.
    """
    carts, moments = (4, 5) if short else (32, 32)
    episodes, longest = (4, 20) if short else (128, LONGEST)
    widest = WIDEST * np.array([TRACK, 1.0, TILT, 1.0])

    def make_data(seed):
        rng = np.random.default_rng(seed)

        def games():
            starts = rng.uniform(-1, 1, (episodes, 4)) * widest
            uniforms = rng.uniform(size=(longest, episodes))
            return starts.astype(np.float32), uniforms.astype(np.float32)

        return {"train": (), "validation": games(), "test": games()}

    def draw(key, train):
        del train
        one, two = jax.random.split(key)
        starts = jax.random.uniform(one, (carts, 4), minval=-1) * widest
        return starts, jax.random.uniform(two, (moments, carts))

    def play(params, starts, uniforms):
        """States [moments, carts, 4], actions, falls; who fell starts once more."""

        def body(state, uniform):
            right = choose(params, state, uniform)
            after = move(state, right)
            over = fell(after)
            return jnp.where(over[:, None], starts, after), (state, right, over)

        last, played = jax.lax.scan(body, starts, uniforms)
        return *played, last

    def advantages(values, last_value, over):
        """Generalised advantage estimates [moments, carts]; the reward is 1."""
        following = jnp.concatenate([values[1:], last_value[None]])
        going_on = DISCOUNT * (1 - over)
        errors = 1 + going_on * following - values

        def body(carry, inputs):
            error, factor = inputs
            carry = error + LAMBDA * factor * carry
            return carry, carry

        start = jnp.zeros_like(last_value)
        return jax.lax.scan(body, start, (errors, going_on), reverse=True)[1]

    def losses_fn(params, batch):
        fixed = jax.lax.stop_gradient(params)
        states, right, over, last = play(fixed, *batch)
        _, last_value = network(fixed, last)
        _, old_values = network(fixed, states)
        gains = advantages(old_values, last_value, over)
        logits, values = network(params, states)
        logs = jax.nn.log_softmax(logits)
        chosen = jnp.where(right, logs[..., 1], logs[..., 0])
        entropy = -(jnp.exp(logs) * logs).sum(axis=-1).mean()
        normal = (gains - gains.mean()) / (gains.std() + 1e-6)
        return jnp.stack(
            [
                -(chosen * normal).mean() - ENTROPY * entropy,
                optax.l2_loss(values, old_values + gains).mean(),
            ]
        )

    def score(params, part):
        starts, uniforms = part

        def body(carry, uniform):
            state, alive = carry
            state = move(state, choose(params, state, uniform))
            alive = alive & ~fell(state)
            return (state, alive), alive

        alive = jnp.ones(len(starts), bool)
        _, lived = jax.lax.scan(body, (starts, alive), uniforms)
        finite = jnp.isfinite(network(params, starts)[0]).all()
        return jnp.where(finite, jnp.mean(~lived), jnp.nan)

    return Problem(
        name="Actor and critic",
        measure="1 − episode length / 500",
        num_terms=2,
        steps=20 if short else 1000,
        make_data=make_data,
        init_params=lambda seed: dense_init(seed, (4, 32, 32, 3)),
        draw=draw,
        losses_fn=losses_fn,
        score=score,
    )
