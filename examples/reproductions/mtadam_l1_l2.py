"""MTAdam, Fig. 1: one loss's gradients at the size of another's.

Fit ``a x + b x^2`` (a = 1.52, b = -0.29) with Adam under L1, under L2, and under L1
whose gradient is scaled to the length of L2's. The paper shows a plot: L1 oscillates
around 1e-2, the other two converge. Scaling one term's gradient to another's is
``balance_by_norm(2, decay=0, anchor=0)`` with L2 as the anchor; here the anchor is
then left out of the step, since the paper trains on the scaled L1 alone.

The paper leaves open: the samples x, the batch, the learning rate, the start and the
number of steps. Here: x uniform in [-1, 1], batches of 32, start at zero, and several
learning rates, since the floor that L1 reaches is the learning rate's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import COLOURS, arguments, console, save, show
from matplotlib.figure import Figure
from rich.progress import track

import multiterm_optax as mt

TRUE = jnp.array([1.52, -0.29])
L2, L1 = 0, 1
RATES = (0.1, 0.01, 0.001)


def losses_fn(coefficients, x):
    """L2 and L1 of the residual, [2]."""
    features = jnp.stack([x, x**2], axis=-1)
    error = features @ (coefficients - TRUE)
    return jnp.stack([jnp.mean(error**2), jnp.mean(jnp.abs(error))])


def only(term):
    """Drops every other term."""
    return mt.reweight(mt.constant(jnp.eye(2)[term]), num_terms=2)


METHODS = {
    "L1": mt.chain(only(L1), mt.sum_terms(), optax.scale_by_adam()),
    "L2": mt.chain(only(L2), mt.sum_terms(), optax.scale_by_adam()),
    "L1, scaled to L2": mt.chain(
        mt.balance_by_norm(2, decay=0.0, anchor=L2, groups="global"),
        only(L1),
        mt.sum_terms(),
        optax.scale_by_adam(),
    ),
}


def train(tx, rate, seed, steps):
    """Distance of the coefficients from the true ones after each step, [steps]."""
    grad_fn = mt.term_grads(losses_fn)

    def step(carry, key):
        params, state = carry
        x = jax.random.uniform(key, (32,), minval=-1.0, maxval=1.0)
        updates, state = tx.update(grad_fn(params, x), state, params)
        params = params - rate * updates
        return (params, state), jnp.linalg.norm(params - TRUE)

    params = jnp.zeros(2)
    keys = jax.random.split(jax.random.key(seed), steps)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[1]


def main():
    args = arguments(__doc__, seeds=5)
    steps, seeds = (200, 2) if args.short else (10_000, args.seeds)
    curves = {}
    jobs = [(name, rate) for rate in RATES for name in METHODS]
    for name, rate in track(jobs, "training", console=console):
        run = jax.jit(lambda seed, tx=METHODS[name], r=rate: train(tx, r, seed, steps))
        curves[name, rate] = np.stack([run(seed) for seed in range(seeds)])

    def final(name, rate):  # the last twentieth, so that one lucky step counts little
        tail = curves[name, rate][:, -steps // 20 :].mean()
        return f"{tail:.1e}" if tail else "0"

    paper = {"L1": "about 1e-2 (loss)", "L2": "converges", "L1, scaled to L2": "as L2"}
    table = show(
        f"Distance from (a, b) after {steps} steps of Adam, {seeds} seeds",
        ["objective", *(f"rate {rate:g}" for rate in RATES), "paper"],
        [[n, *(final(n, rate) for rate in RATES), paper[n]] for n in METHODS],
    )
    figure = Figure(figsize=(11, 3.5), dpi=100, layout="constrained")
    for ax, rate in zip(figure.subplots(1, len(RATES)), RATES, strict=True):
        looks = zip(METHODS, COLOURS, ("-", "-", "--"), strict=False)
        for name, colour, style in looks:
            mean = curves[name, rate].mean(axis=0)
            ax.semilogy(mean, label=name, color=colour, linestyle=style)
        ax.set(title=f"rate {rate:g}", xlabel="step", ylabel="distance from (a, b)")
    figure.axes[0].legend()
    results = {
        f"{name}, {rate:g}": curve[:, -1].tolist()
        for (name, rate), curve in curves.items()
    }
    save(args, "mtadam_l1_l2", figure, [table], results)


if __name__ == "__main__":
    main()
