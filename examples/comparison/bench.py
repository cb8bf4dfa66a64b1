"""Trains one problem by any method, ten times at once, and times one training."""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from methods import STATIC, Setting

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING, TESTING = (100, 101), tuple(range(10))  # seeds
# Trainings in one program: every rate with both tuning seeds, or all test seeds.
LANES = len(TESTING)
TRIALS = LANES // len(TUNING)
DECADES = 4.0  # of the static weights, either way
TIMED = 3  # trainings


class Bench:
    """One problem: trains by any method, and times it."""

    def __init__(self, problem):
        self.problem = problem
        self.ones = np.ones(problem.num_terms, np.float32)
        self.lanes = functools.cache(self.lanes)
        self.data_of = functools.cache(self.data_of)

    def train(self, method, rate, seed, weights, data):
        """Validation and test score of one training."""
        problem = self.problem
        keys = jax.random.split(jax.random.key(seed), problem.steps + 1)
        setting = Setting(rate, problem.num_terms, problem.steps, keys[0], weights)
        init, step = method(problem.losses_fn, setting)

        def body(carry, key):
            return step(*carry, problem.draw(key, data["train"])), None

        params: Any = problem.init_params(seed)
        (params, _), _ = jax.lax.scan(body, (params, init(params)), keys[1:])
        parts = data["validation"], data["test"]
        return jnp.stack([problem.score(params, part) for part in parts])

    def data_of(self, seeds):
        """The data of some seeds, every array with an axis of them in front."""
        each = [self.problem.make_data(seed) for seed in seeds]
        return jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *each)

    def lanes(self, method):
        """A function of rates, seeds and weights, to scores [2, LANES]."""
        program = jax.jit(jax.vmap(functools.partial(self.train, method)))

        def run(rates, seeds, weights):
            rates = np.broadcast_to(np.float32(rates), (LANES,))
            weights = np.broadcast_to(np.float32(weights), (LANES, len(self.ones)))
            data = self.data_of(tuple(seeds))
            return np.asarray(program(rates, np.int32(seeds), weights, data)).T

        return run

    def times(self, method):
        """Seconds of a training by the method and by Adam, in turns."""
        data = jax.tree.map(lambda part: part[0], self.data_of(TUNING * TRIALS))
        given = np.float32(RATES[0]), np.int32(TUNING[0]), self.ones, data
        programs = [
            jax.jit(functools.partial(self.train, m)).lower(*given).compile()
            for m in (method, STATIC)
        ]
        seconds = [[], []]
        for program, found in [*zip(programs, seconds, strict=True)] * (TIMED + 1):
            start = time.perf_counter()
            jax.block_until_ready(program(*given))
            found.append(time.perf_counter() - start)
        return [float(np.median(found[1:])) for found in seconds]  # the first warms up


def mean_validation(scores):
    """By trial, of scores [trials x seeds]; infinite where a training ended in NaN."""
    means = np.where(np.isnan(scores), np.inf, scores).reshape(-1, len(TUNING))
    return means.mean(axis=1).tolist()


def tune(bench, method, weights):
    """The rate with the best validation score, and the test scores there."""
    run = bench.lanes(method)
    scores, _ = run(np.repeat(RATES, len(TUNING)), TUNING * TRIALS, weights)
    validation = mean_validation(scores)
    rate = RATES[int(np.argmin(validation))]
    _, test = run(rate, TESTING, weights)
    return {"rate": rate, "validation": validation, "test": test.tolist()}


def measure(bench, method):
    """One method: rate by validation, test scores, time over that of Adam."""
    own, adam = bench.times(method)
    found = tune(bench, method, bench.ones)
    return found | {"seconds": own, "ratio": own / adam}


def equal_weights(bench):
    """Adam on the sum at every rate, and on the sum with a known scaling undone."""
    undo = bench.problem.undo
    undone = None if undo is None else tune(bench, STATIC, undo)
    return {"equal": tune(bench, STATIC, bench.ones), "undone": undone}


def draw_trials(number, num_terms):
    """Rates and weights of the random trials."""
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(number):
        rate = float(rng.choice(RATES))
        spread = rng.uniform(0, DECADES)
        trials.append((rate, 10 ** (spread * rng.uniform(-1, 1, num_terms))))
    return trials


def search(bench, trials, threshold):
    """Those of some trials that are better than ``threshold`` on the validation data.

    A trial that is no better than equal weights is never chosen, and so is not tested.
    """
    run = bench.lanes(STATIC)
    rates, weights = zip(*trials, strict=True)
    repeated = [np.repeat(x, len(TUNING), axis=0) for x in (rates, weights)]
    scores, _ = run(repeated[0], TUNING * TRIALS, repeated[1])
    better = []
    for (rate, own), mean in zip(trials, mean_validation(scores), strict=True):
        if mean < threshold:
            _, test = run(rate, TESTING, own)
            relative = np.log10(own / own[0]).round(2).tolist()
            trial = {"rate": rate, "log10 weights": relative}
            better.append({**trial, "validation": mean, "test": test.tolist()})
    return better


def rounded(value):
    """Four digits are enough; what is not finite becomes None, as JSON wants it."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
