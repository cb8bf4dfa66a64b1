"""AdaTask on a real set with two labels: Adult, income over 50K and never married.

The paper has no table for this data, so our columns stand alone; its real data are
CityScapes, TikTok and WeChat. Reported on test rows are the area under the ROC curve
(AUC) and the accuracy of both labels, the difference of the mean AUC from equal weights
with the same start and batches, and how many shared parameters a label dominates (rAU,
of the second label). Marital status and relationship are not inputs.

The network has two shared layers (64 units, ReLU) and a linear head for each label,
with two cross-entropies, batches of 200 and 12 epochs. All, AdaTask included, use
RMSProp (decay 0.99) as in ``adatask_synthetic.py``; below come Adam's forms with
MTAdam. Every method gets the same four learning rates, and the rate and the epoch with
the best mean AUC on the validation rows, over the labels and seeds. Controls: AdaTask's
step is about twice as long, so equal weights also run at one, two and four times the
rate chosen for AdaTask. Static weights are tuned on the validation rows: first equal
ones at the four rates, then pairs of weights (their ratio from 0.1 to 10) and rates
drawn at random, as many as fit in the time that AdaTask needed for its four rates.
Times are of all rates and seeds of a method without compilation; they include the
recording of dominance.
"""

import time
from typing import Any

import adult
import jax
import jax.numpy as jnp
import numpy as np
import optax
from adatask_common import DECAY, K, adatask, layer_shares, shared
from common import arguments, console, mean_sd, save, show
from matplotlib.figure import Figure
from rich.progress import Progress

import multiterm_optax as mt

WIDTH, BATCH = 64, 200
RATES = (1.25e-4, 5e-4, 2e-3, 8e-3)
LAYERS = ["layer 0", "layer 1"]
FIFTHS = ["#1a9850", "#a6d96a", "#ffffbf", "#fdae61", "#d73027"]


def methods():
    """From a rate to an optimizer of per-term gradients."""
    key = jax.random.key(0)
    adam = optax.scale_by_adam()
    return {
        "equal weights": lambda rate: shared(mt.constant(jnp.ones(K)), rate),
        "GradNorm": lambda rate: shared(mt.gradnorm(), rate),
        "uncertainty": lambda rate: shared(mt.uncertainty(), rate),
        "PCGrad": lambda rate: shared(mt.pcgrad(key), rate),
        "CAGrad": lambda rate: shared(mt.cagrad(), rate),
        "AdaTask": adatask,
        "layer-wise AdaTask": lambda rate: mt.ladatask_rmsprop(rate, K, decay=DECAY),
        "PCGrad, then AdaTask": lambda rate: adatask(rate, mt.pcgrad(key)),
        "CAGrad, then AdaTask": lambda rate: adatask(rate, mt.cagrad()),
        "Adam, equal weights": lambda rate: mt.chain(mt.sum_terms(), optax.adam(rate)),
        "Adam, AdaTask": lambda rate: adatask(rate, inner=adam),
        "MTAdam": lambda rate: mt.mtadam(rate, K),
    }


def static(rate):
    return optax.rmsprop(rate, DECAY, eps_in_sqrt=False)


def init_params(seed, inputs):
    sizes = [(inputs, WIDTH), (WIDTH, WIDTH), (WIDTH, 1), (WIDTH, 1)]
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return {
        name: {
            "w": jax.random.normal(key, size) * np.sqrt(2 / size[0]),
            "b": jnp.zeros(size[1]),
        }
        for name, key, size in zip(
            [*LAYERS, "head 0", "head 1"], keys, sizes, strict=True
        )
    }


def logits(params, x):
    """[rows, K]."""
    for layer in LAYERS:
        x = jax.nn.relu(x @ params[layer]["w"] + params[layer]["b"])
    heads = [params[f"head {k}"] for k in range(K)]
    return jnp.concatenate([x @ head["w"] + head["b"] for head in heads], axis=1)


def losses_fn(params, batch):
    x, y = batch
    return optax.sigmoid_binary_cross_entropy(logits(params, x), y).mean(axis=0)


def train(method, epochs, train_set, others, seed, rate, weights=None):
    """Logits of the other rows, and dominance shares, after each epoch.

    With ``weights`` [K] it is one gradient of the weighted sum of the losses, for an
    ordinary optimizer.
    """
    tx = method(rate)
    rows = len(train_set[0])

    def step(carry, chosen):
        params, state = carry
        batch = jax.tree.map(lambda part: part[chosen], train_set)
        if weights is None:
            losses, grads = mt.value_and_term_grads(losses_fn)(params, batch)
            updates, state = tx.update(grads, state, params, losses=losses)
        else:
            fixed = jnp.asarray(weights)
            grads = jax.grad(lambda p: jnp.dot(losses_fn(p, batch), fixed))(params)
            updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, rows)
        carry, _ = jax.lax.scan(step, carry, order.reshape(-1, BATCH))
        found = (
            jnp.zeros((0,)) if weights is not None else layer_shares(carry[1], LAYERS)
        )
        return carry, (logits(carry[0], others), found)

    params: Any = init_params(seed, others.shape[1])
    keys = jax.random.split(jax.random.key(seed), epochs)
    return jax.lax.scan(epoch, (params, tx.init(params)), keys)[1]


def auc(scores, labels):
    """The area under the ROC curve along the last axis; ties count one half."""
    flat = scores.reshape(-1, scores.shape[-1])
    negatives, positives = np.sort(flat[:, labels == 0]), flat[:, labels == 1]
    below = [
        (np.searchsorted(n, p, "left") + np.searchsorted(n, p, "right")).mean() / 2
        for n, p in zip(negatives, positives, strict=True)
    ]
    return np.array(below).reshape(scores.shape[:-1]) / negatives.shape[1]


def score(outputs, sets):
    """AUC and accuracy [runs, epochs, sets, 2, K] of all [runs, epochs, rows, K]."""
    parts, start = [], 0
    for _, y in sets:
        part = outputs[:, :, start : start + len(y)]
        start += len(y)
        areas = np.stack([auc(part[..., k], y[:, k]) for k in range(K)], axis=-1)
        parts.append(np.stack([areas, ((part > 0) == y).mean(axis=2)], axis=2))
    return np.stack(parts, axis=2)


def compiled(method, epochs, data, runs, weighted=False):
    """For so many pairs of a seed and a rate at once."""

    def run(train_set, others, *each):
        def one(*setting):
            return train(method, epochs, train_set, others, *setting)

        return jax.vmap(one)(*each)

    each = [np.zeros(runs, int), np.ones(runs, np.float32)]
    if weighted:
        each.append(np.ones((runs, K), np.float32))
    return jax.jit(run).lower(*data, *each).compile()


def evaluated(program, data, sets, seeds, rates, *weights):
    """Scores and shares [settings, seeds, ...], and seconds."""
    each = [np.repeat(np.float32(part), seeds, axis=0) for part in (rates, *weights)]
    start = time.perf_counter()
    outputs, shares = program(*data, np.tile(np.arange(seeds), len(rates)), *each)
    outputs, shares = np.asarray(outputs), np.asarray(shares)
    seconds = time.perf_counter() - start
    scores, folded = score(outputs, sets[1:]), (len(rates), seeds)
    return (
        scores.reshape(*folded, *scores.shape[1:]),
        shares.reshape(*folded, *shares.shape[1:]),
        seconds,
    )


def tune_static(epochs, data, sets, seeds, budget):
    """The best weights and rate found within ``budget`` seconds, and its row."""
    program = compiled(static, epochs, data, seeds, weighted=True)
    rng = np.random.default_rng(0)
    tried, parts, spent = [], [], 0.0
    while True:
        equal = len(tried) < len(RATES)
        ratio = 1 if equal else 10 ** rng.uniform(-1, 1)
        weights = 2 * np.array([ratio, 1]) / (1 + ratio)
        rate = RATES[len(tried)] if equal else rng.choice(RATES)
        scores, _, seconds = evaluated(program, data, sets, seeds, [rate], [weights])
        if tried and spent + seconds > budget:
            break
        spent += seconds
        parts.append(scores)
        tried.append((weights, rate))
    best, row = pick(np.concatenate(parts), np.zeros((len(tried), seeds, 0)), spent)
    weights, rate = tried[best]
    row["setting"] = f"{rate:g}; {weights[0]:.2f}, {weights[1]:.2f}"
    return f"static, {len(tried)} tried", row


def main():
    args = arguments(__doc__, seeds=5)
    epochs, seeds, names = 12, args.seeds, list(methods())
    sets = adult.load(stand_in=args.short)
    if args.short:
        epochs, seeds, names = 2, 1, ["equal weights", "AdaTask"]
    others = jnp.asarray(np.concatenate([x for x, _ in sets[1:]]))
    data = (jax.tree.map(jnp.asarray, sets[0]), others)

    rows, programs, rates = {}, {}, {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training", total=len(names) + 2)
        for name in names:
            programs[name] = compiled(methods()[name], epochs, data, seeds * len(RATES))
            best, rows[name] = pick(
                *evaluated(programs[name], data, sets, seeds, RATES)
            )
            rates[name] = RATES[best]
            rows[name]["setting"] = f"{RATES[best]:g}"
            progress.advance(bar)

        controls = [factor * rates["AdaTask"] for factor in (1, 2, 4, 8)]
        scores, shares, seconds = evaluated(
            programs["equal weights"], data, sets, seeds, controls
        )
        for i in range(3):
            name = f"equal, AdaTask's rate x {2**i}"
            _, rows[name] = pick(scores[i : i + 1], shares[i : i + 1], seconds)
            rows[name]["setting"] = f"{controls[i]:g}"
        progress.advance(bar)
        name, row = tune_static(epochs, data, sets, seeds, rows["AdaTask"]["seconds"])
        rows[name] = row
        progress.advance(bar)

    table = show(
        f"Test rows, {seeds} seeds, at most {epochs} epochs",
        COLUMNS,
        [line(name, row, rows["equal weights"]) for name, row in rows.items()],
        parts=[[3, 4, 5, 6], [1, 2, 7, 8, 12], [9, 10, 11]],
    )
    results = {
        name: {key: np.asarray(value).tolist() for key, value in row.items()}
        for name, row in rows.items()
    }
    save(args, "adatask_adult", plot(rows), [table], results)


def pick(scores, shares, seconds):
    """The setting and the epoch with the best mean AUC on the validation rows."""
    valid = scores[:, :, :, 0, 0].mean(axis=(1, 3))
    best, epoch = np.unravel_index(np.argmax(valid), valid.shape)
    return best, {
        "valid": valid[best, epoch],
        "test": scores[best, :, epoch, 1],  # [seeds, 2, K]
        "epoch": epoch + 1,
        "shares": shares[best].mean(axis=0) if shares.shape[-1] else np.zeros(0),
        "seconds": seconds,
    }


COLUMNS = ["method", "rate", "epoch", "AUC: income", "single", "mean", "from equal"]
COLUMNS += ["accuracy: income", "single", "rAU of single over 80 %", "40 to 60 %"]
COLUMNS += ["under 20 %", "seconds"]


def line(name, row, equal):
    areas, hits = 100 * row["test"][:, 0], 100 * row["test"][:, 1]
    apart = (areas - 100 * equal["test"][:, 0]).mean(axis=1)
    last = row["shares"][-1, 0] if row["shares"].size else None
    return [
        name,
        row["setting"],
        str(row["epoch"]),
        *(mean_sd(areas[:, k]) for k in range(K)),
        mean_sd(areas.mean(axis=1)),
        "" if row is equal else mean_sd(apart),
        *(mean_sd(hits[:, k], 1) for k in range(K)),
        *("–" if last is None else f"{100 * last[i]:.0f} %" for i in (4, 2, 0)),
        f"{row['seconds']:.0f}",
    ]


def plot(rows):
    figure = Figure(figsize=(12, 4.5), dpi=80, layout="constrained")
    points, areas = figure.subplots(1, 2, width_ratios=(1.2, 1))
    names = list(rows)[::-1]
    for i, name in enumerate(names):
        mean = 100 * rows[name]["test"][:, 0].mean(axis=1)
        points.plot(mean, np.full(len(mean), i), ".", color="grey")
        points.plot(mean.mean(), i, "D", color="black")
    points.axvline(100 * rows["equal weights"]["test"][:, 0].mean(), lw=0.6)
    points.set_yticks(range(len(names)), names)
    points.set(title="mean AUC of both labels, test rows", xlabel="%")
    shown = [name for name in names if rows[name]["shares"].size]
    left = np.zeros(len(shown))
    for fifth, colour in enumerate(FIFTHS):
        share = np.array([rows[name]["shares"][-1, 0, fifth] for name in shown])
        areas.barh(range(len(shown)), share, left=left, color=colour)
        left += share
    areas.set_yticks(range(len(shown)), shown)
    areas.set(xlim=(0, 1), title="rAU: green income's, red single's")
    return figure


if __name__ == "__main__":
    main()
