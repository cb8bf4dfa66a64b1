"""Medians, quartiles and ratios of step times that were taken in rounds."""

import math
import statistics
from collections.abc import Sequence

Rounds = Sequence[Sequence[float]]  # a turn's step times, for each round


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, linearly interpolated."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def of_steps(rounds: Rounds) -> tuple[float, float, float]:
    """Quartiles over all steps of all rounds."""
    return quartiles([seconds for turn in rounds for seconds in turn])


def median_interval(
    values: Sequence[float], coverage: float = 0.9
) -> tuple[float, float, float]:
    """An interval for the median from order statistics, with its true coverage.

    The i-th smallest and the i-th largest of n values enclose the median with
    probability 1 - 2 P(Bin(n, 1/2) < i), whatever the distribution. Returns the
    narrowest such interval that reaches ``coverage``, or the whole range where none
    does, and the probability.
    """
    ordered, n = sorted(values), len(values)
    chosen, missed = 0, 0.0
    tail = 0.0
    for i in range((n + 1) // 2):
        tail += math.comb(n, i) / 2**n
        if i > 0 and 1 - 2 * tail < coverage:
            break
        chosen, missed = i, 2 * tail
    return ordered[chosen], ordered[n - 1 - chosen], 1 - missed


def ratio(ours: Rounds, theirs: Rounds) -> dict[str, float]:
    """Ratio of the medians, with an interval from the ratios of single rounds.

    Both take their turn in every round, so that a change of the machine's speed from
    one round to the next is in neither ratio.
    """
    each = [
        statistics.median(a) / statistics.median(b)
        for a, b in zip(ours, theirs, strict=True)
    ]
    low, high, coverage = median_interval(each)
    return {
        "ratio": of_steps(ours)[1] / of_steps(theirs)[1],
        "low": low,
        "high": high,
        "coverage": coverage,
    }
