"""Jacobians that balancing methods meet, well-behaved and not."""

import numpy as np


def generic(rng, terms, size):
    return rng.normal(size=(terms, size))


def agreeing(rng, terms, size):
    return rng.normal(size=(terms, size)) + rng.normal(size=size)


def scales_apart(rng, terms, size):
    powers = rng.permutation(np.linspace(-3, 3, terms))
    return agreeing(rng, terms, size) * 10.0 ** powers[:, None]


def aligned(rng, terms, size):
    return 0.1 * rng.normal(size=(terms, size)) + rng.normal(size=size)


def opposed(rng, terms, size):
    return _second_half_from_first(generic(rng, terms, size), -1.0)


def duplicated(rng, terms, size):
    return _second_half_from_first(agreeing(rng, terms, size), 1.0)


def collinear(rng, terms, size):
    rows = agreeing(rng, terms, size)
    half = terms // 2
    rows[terms - half :] = rows[:half] * rng.uniform(0.5, 2.0, size=(half, 1))
    return rows


def rank_deficient(rng, terms, size):
    rank = max(1, terms // 4)
    return rng.normal(size=(terms, rank)) @ rng.normal(size=(rank, size))


def rank_one(rng, terms, size):
    return rng.uniform(0.5, 2.0, size=(terms, 1)) * rng.normal(size=(1, size))


def more_terms_than_parameters(rng, terms, size):
    del size
    return agreeing(rng, terms, max(1, terms // 2))


def _second_half_from_first(rows, factor):
    half = len(rows) // 2
    rows[len(rows) - half :] = factor * rows[:half]
    return rows


# Found among random problems: an interior point that follows its predictions wherever
# they lead goes round in circles here.
CIRCLING = np.array(
    [
        [20.46, 6.36, 24.02, -34.01, 27.09, -4.44],
        [7.51, -1.4, 2.09, 4.11, -8.93, 2.51],
        [0.01, 0.07, 0, -0.07, 0, -0.04],
        [0, -0.09, -0.52, -1.11, -0.96, -1.39],
        [-1.64, -0.19, -1.47, 1.25, -0.07, -0.56],
    ]
)

WELL_POSED = [generic, agreeing, scales_apart, aligned, opposed]
DEGENERATE = [
    duplicated,
    collinear,
    rank_deficient,
    rank_one,
    more_terms_than_parameters,
]
