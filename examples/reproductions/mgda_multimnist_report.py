"""The tables and the picture of mgda_multimnist.py."""

import numpy as np
from common import COLOURS, mean_sd
from matplotlib.figure import Figure

THESIS = {
    ("MGDA", 0.0): "better than most ε",
    ("inexact", 0.1): "best by Fig. 3.4",
    ("inexact", 0.2): "best by the text",
    ("adaptive", 0.1): "best, above all ε",
    ("adaptive", 1.0): "no good point",
}
SIDES = ("left", "right")
LABELS = {"inexact": "constant, by ε", "adaptive": "adaptive, by λ"}


def percent(share):
    return f"{share:.0f} %" if share == 0 or share >= 1 else f"{share:.1f} %"


def label(method, value):
    if method == "MGDA":
        return "MGDA"
    if method != "sum":
        return f"{'ε' if method == 'inexact' else 'λ'} = {value:g}"
    alone = {(1.0, 0.0): "left digit alone", (0.0, 1.0): "right digit alone"}
    weights = "static weights {:.1f}, {:.1f}".format(*value)
    return {(1.0, 1.0): "joint sum", **alone}.get(value, weights)


def table(results, chosen):
    mgda = results[chosen["MGDA"]].test.mean(axis=1)
    rows = []
    for (method, value), result in results.items():
        both = result.test.mean(axis=1)
        left, right = (mean_sd(result.test[:, term]) for term in range(2))
        # Same network at the start, same batches: the difference of each seed.
        mean, apart = mean_sd(both), mean_sd(both - mgda)
        name = label(method, value)
        if (method, value) in (chosen["inexact"], chosen["adaptive"]):
            name = f"**{name}**"
        if method == "sum" and 0.0 in value:
            left, right = (left, "–") if value[0] else ("–", right)
            mean = apart = "–"
        if method == "MGDA":
            apart = "–"
        skipped = [percent(result.skipped(part).mean()) for part in (slice(None), -1)]
        if method in ("sum", "MGDA"):
            skipped = ["–", "–"]
        thesis = THESIS.get((method, value), "–")
        rows.append([name, left, right, mean, apart, *skipped, thesis])
    return rows


def claims(results, bound, scale):
    """What the thesis says of its pictures, beside the same here."""
    adaptive = results["adaptive", scale]
    errors = adaptive.errors.mean(axis=0)
    losses = adaptive.losses.mean(axis=0)
    steepest = np.argmax(-np.diff(losses.mean(axis=1))) + 2
    peak = np.argmax(errors.mean(axis=1)) + 1
    taken = adaptive.weights.any(axis=-1)
    right = np.where(taken, adaptive.weights[..., 1], np.nan)
    fifth = max(1, len(errors) // 5)
    spread = [np.nanstd(right[:, part]) for part in (slice(fifth), slice(-fifth, None))]
    higher = (adaptive.losses[..., 1] > adaptive.losses[..., 0]).mean()
    return [
        [
            "error found over the best constant bound",
            "an order of magnitude",
            f"{errors[1:].mean() / bound:.1f} (best bound {bound:g})",
        ],
        ["best lambda", "0.1", f"{scale:g}"],
        [
            "the error peaks where the losses fall fastest",
            "yes",
            f"peak in epoch {peak}, fastest fall into epoch {steepest}",
        ],
        [
            "the error settles with the losses",
            "yes",
            f"epoch 2: {errors[1].mean():.2f}, last: {errors[-1].mean():.2f}",
        ],
        [
            "right digit's loss is the higher one",
            "yes",
            f"in {100 * higher:.0f} % of the epochs",
        ],
        [
            "weight of the right digit's loss",
            "slightly over 1/2",
            f"{np.nanmean(right):.2f}",
        ],
        [
            "weights oscillate less near convergence",
            "yes",
            f"sd {spread[0]:.2f} in the first fifth, {spread[1]:.2f} in the last",
        ],
    ]


def draw(results, chosen):
    figure = Figure(figsize=(10, 7.5), dpi=80, layout="constrained")
    (accuracy, skipped), (errors, weights) = figure.subplots(2, 2)
    draw_sweeps(results, chosen, accuracy, skipped)
    draw_adaptive(results[chosen["adaptive"]], errors, weights)
    value = chosen["adaptive"][1]
    errors.set(yscale="log", xlabel="epoch", title=f"Adaptive, λ = {value:g}")
    weights.set(xlabel="step", ylabel="α, steps taken", ylim=(0, 1))
    weights.set_title(f"Adaptive, λ = {value:g}, first seed")
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=8, frameon=False)
    return figure


def draw_sweeps(results, chosen, accuracy, skipped):
    for name, colour in (("sum", COLOURS[0]), ("MGDA", COLOURS[1])):
        for term, style in enumerate(("-", "--")):
            level = results[chosen[name]].test[:, term].mean()
            label = f"{name}, {SIDES[term]}"
            accuracy.axhline(level, color=colour, ls=style, lw=1, label=label)
    shown = []
    for name, colour in (("inexact", COLOURS[2]), ("adaptive", COLOURS[3])):
        values = [value for method, value in results if method == name]
        found = [results[name, value] for value in values]
        tests = np.array([each.test.mean(axis=0) for each in found])
        # Where training stopped early the points are far below all others.
        shown += list(tests[tests > 90])
        for term, style in enumerate(("o-", "o--")):
            accuracy.plot(values, tests[:, term], style, color=colour, ms=4)
        for part, style, when in (
            (slice(None), "o-", "all epochs"),
            (-1, "o:", "last epoch"),
        ):
            shares = [each.skipped(part).mean() for each in found]
            label = f"{LABELS[name]}, {when}"
            skipped.plot(values, shares, style, color=colour, ms=4, label=label)
    accuracy.set(xscale="log", xlabel="ε or λ", ylabel="test accuracy, %")
    accuracy.set_title("Solid: left digit, dashed: right; blue: ε, green: λ", size=9)
    if shown:
        accuracy.set_ylim(min(shown) - 0.5, max(shown) + 1.5)
    skipped.set(xscale="log", xlabel="ε or λ", ylabel="steps skipped, %")


def draw_adaptive(result, errors, weights):
    epochs = 1 + np.arange(result.errors.shape[1])
    taken = result.weights[0].any(axis=-1, keepdims=True)
    alpha = np.where(taken, result.weights[0], np.nan)  # [epochs, steps, K]
    count = taken.sum(axis=1)
    means = result.weights[0].sum(axis=1) / np.where(count, count, np.nan)
    steps = alpha.shape[1]
    for term, colour in enumerate((COLOURS[2], COLOURS[1])):
        for seed in range(len(result.test)):
            label = f"{SIDES[term]}: error found" if seed == 0 else None
            found = result.errors[seed, :, term]
            errors.plot(epochs, found, color=colour, lw=1, label=label)
            label = f"{SIDES[term]}: training loss" if seed == 0 else None
            losses = result.losses[seed, :, term]
            errors.plot(epochs, losses, "--", color=colour, lw=1, label=label)
        dots = np.arange(0, alpha[..., term].size, 3)
        values = alpha[..., term].ravel()[dots]
        weights.plot(dots, values, ".", ms=1, alpha=0.2, color=colour)
        label = f"{SIDES[term]}, mean of an epoch"
        weights.plot((epochs - 0.5) * steps, means[:, term], color=colour, label=label)
