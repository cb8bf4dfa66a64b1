"""Regressions on which nothing of the library was chosen: a term for each target."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from parkinsons import load
from problem import Problem, dense, dense_init, rows

TASKS, HIDDEN, INPUTS = 6, 3, 12
COSINE = -0.15  # of any two tasks' directions


def split(rng, *arrays):
    """60 % of the rows for training, 20 % for validation, 20 % for the test."""
    total = len(arrays[0])
    order = rng.permutation(total)
    test, held, train = np.split(order, [total // 5, 2 * (total // 5)])
    chosen = {"train": train, "validation": held, "test": test}
    return {name: tuple(a[part] for a in arrays) for name, part in chosen.items()}


def linear(short: bool) -> Problem:
    """Six linear regressions through three hidden units: no room for all.

    After Hu et al., "Revisiting Scalarization in Multi-Task Learning" (2023): where the
    linear layer that the tasks share is too narrow, parts of the Pareto front are out
    of reach of static weights. The tasks' directions repel each other, so that weights
    learn some tasks and give up another. Three directions can leave each task 0.43 of
    its variance. In the limit of training, no static weights that a search found leave
    the worst task less than 0.8, save those that undo the tasks' sizes exactly: then
    all subspaces of one of five dimensions are as good, and the start decides. The
    score asks for balance: it is the worst task's squared error over its variance.
    """
    gram = (1 - COSINE) * np.eye(TASKS) + COSINE
    directions = np.linalg.cholesky(gram).T
    sizes = np.geomspace(0.5, 2, TASKS)  # the targets' deviations
    total = 200 if short else 5000

    def make_data(seed):
        rng = np.random.default_rng(seed)
        turn = np.linalg.qr(rng.normal(size=(INPUTS, INPUTS)))[0][:, :TASKS]
        x = rng.normal(size=(total, INPUTS))
        y = x @ turn @ directions + 0.1 * rng.normal(size=(total, TASKS))
        return split(rng, x.astype(np.float32), (sizes * y).astype(np.float32))

    def init_params(seed):
        one, two = jax.random.split(jax.random.key(seed))
        return {
            "shared": jax.random.normal(one, (INPUTS, HIDDEN)) / np.sqrt(INPUTS),
            "heads": jax.random.normal(two, (HIDDEN, TASKS)) / np.sqrt(HIDDEN),
        }

    def losses_fn(params, batch):
        x, y = batch
        error = x @ params["shared"] @ params["heads"] - y
        return jnp.mean(error**2, axis=0)

    def score(params, part):
        return jnp.max(losses_fn(params, part) / part[1].var(axis=0))

    return Problem(
        name="Linear, too narrow",
        measure="worst task's 1 − R²",
        num_terms=TASKS,
        steps=20 if short else 6000,
        make_data=make_data,
        init_params=init_params,
        draw=rows(64),
        losses_fn=losses_fn,
        score=score,
        undo=1 / sizes**2,
    )


def raw_targets(name: str, x: Any, y: Any, short: bool, steps: int = 8000) -> Problem:
    """Targets in the units in which they were measured, a mean squared error for each.

    Inputs are standardised. Targets are only centred by their means in the training
    rows, as by an output layer whose biases start there: at rates of 3e-4 to 3e-2 it
    would take the network most of the steps to find them.
    """

    def make_data(seed):
        parts = split(np.random.default_rng(seed), x, y)
        inputs, targets = parts["train"]
        low, spread, middle = inputs.mean(axis=0), inputs.std(axis=0), targets.mean(0)
        return {
            part: (
                ((x - low) / spread).astype(np.float32),
                (y - middle).astype(np.float32),
            )
            for part, (x, y) in parts.items()
        }

    def losses_fn(params, batch):
        x, y = batch
        return jnp.mean((dense(params, x) - y) ** 2, axis=0)

    def score(params, part):
        return jnp.mean(jnp.sqrt(losses_fn(params, part)) / part[1].std(axis=0))

    sizes = (x.shape[1], 32, 32, y.shape[1])
    return Problem(
        name=name,
        measure="normalised RMSE",
        num_terms=y.shape[1],
        steps=20 if short else steps,
        make_data=make_data,
        init_params=lambda seed: dense_init(seed, sizes),
        draw=rows(64),
        losses_fn=losses_fn,
        score=score,
        undo=1 / y.var(axis=0),
    )


def parkinsons(short: bool) -> Problem:
    """UCI's Parkinsons telemonitoring: two clinical scores and three voice measures.

    A term for each of motor_UPDRS, total_UPDRS, HNR, Shimmer and Jitter(%), whose
    deviations go from 11 to 0.006. Inputs are age, sex, time, RPDE, DFA and PPE; the
    other jitters and shimmers and NHR would give targets away. Rows are split at
    random, so that a patient has rows in all parts. Jitter(Abs) is no target: with a
    deviation of 4e-5 it lies below the length of Adam's steps.
    """
    x, y = load(stand_in=short)
    return raw_targets("Parkinsons", x, y, short)


def diabetes(short: bool) -> Problem:
    """Scikit-learn's diabetes: progression, blood pressure and three blood values.

    A term for each of progression, s1, bp, s4 and s5, whose deviations go from 77 to
    0.5; inputs are age, sex, bmi, s2, s3 and s6.
    """
    from sklearn.datasets import load_diabetes

    found: Any = load_diabetes(scaled=False)
    names = ["s1", "bp", "s4", "s5"]
    columns = dict(zip(found.feature_names, found.data.T, strict=True))
    inputs = [columns[name] for name in ("age", "sex", "bmi", "s2", "s3", "s6")]
    y = np.stack([found.target, *(columns[name] for name in names)], axis=1)
    return raw_targets("Diabetes", np.stack(inputs, axis=1), y, short)


def breast_cancer(short: bool) -> Problem:
    """Scikit-learn's breast cancer: the worst cells of a sample from its average ones.

    A term for each of perimeter, texture, smoothness, compactness and fractal
    dimension, whose deviations go from 34 to 0.018; inputs are the ten means.
    """
    from sklearn.datasets import load_breast_cancer

    found: Any = load_breast_cancer()
    columns = dict(zip(found.feature_names, found.data.T, strict=True))
    targets = ("perimeter", "texture", "smoothness", "compactness", "fractal dimension")
    x = [column for name, column in columns.items() if name.startswith("mean")]
    y = [columns[f"worst {name}"] for name in targets]
    return raw_targets("Breast cancer", np.stack(x, axis=1), np.stack(y, axis=1), short)
