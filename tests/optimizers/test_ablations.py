"""MTAdam's ablations i to v, as docs/methods/mtadam.md composes them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from multiterm_optax import Weighting, balance_by_norm, reweight, scale_by_max_adam
from tests._problems import GROUPS, Pulls
from tests.references import mtadam, mtadam_ablations

STEPS, ALPHA = 30, 0.02
ADAM = {"b1": 0.85, "b2": 0.98, "eps": 1e-6}
B3 = 0.8
LEAVES, ALL = GROUPS["leaf"][1], GROUPS["global"][1]
HYPER = {"alpha": ALPHA, "b3": B3, **ADAM}


class Norms(NamedTuple):
    norms: jax.Array


def inverse_norm(decay):
    """A weighting of one's own: 1 / n_i, from the diagonal of the gramian."""

    def update(gramian, state, *, losses=None, **extra_args):
        now = jnp.sqrt(jnp.diagonal(gramian))
        moved = decay * state.norms + (1 - decay) * now
        norms = jnp.where(state.norms == 0, now, moved)
        return jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 1), Norms(norms)

    return Weighting(lambda num_terms: Norms(jnp.zeros(num_terms)), update)


def ablations(terms):
    """First stages, the reduction, and the transcription with its options."""
    balance = balance_by_norm(terms, B3)
    alone, authors = mtadam_ablations.run, mtadam.authors
    return {
        "i": ([], "max", alone, LEAVES, {"balance": "none"}),
        "ii": (
            [balance_by_norm(terms, B3, groups="global")],
            *("max", authors, ALL, {}),
        ),
        "iii": (
            [reweight(inverse_norm(B3), terms, groups="leaf")],
            *("max", alone, LEAVES, {"balance": "inverse"}),
        ),
        "iv": ([balance], "own", authors, LEAVES, {"scaling": "own"}),
        "v": ([balance], "mean", authors, LEAVES, {"scaling": "mean"}),
    }


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("terms", [slow(2), 3, slow(10)])
@pytest.mark.parametrize("ablation", ["i", "ii", "iii", "iv", "v"])
def test_agrees_with_its_transcription(x64, record_deviation, ablation, terms):
    first, reduction, transcription, layers, options = ablations(terms)[ablation]
    problem = Pulls(terms, STEPS, seed=40 + terms)
    tx = optax.chain(
        *first,
        scale_by_max_adam(terms, reduction=reduction, **ADAM),
        optax.scale_by_learning_rate(ALPHA),
    )
    expected = transcription(
        problem.start,
        problem.numpy_gradients,
        STEPS,
        layers,
        terms=terms,
        **HYPER,
        **options,
    )
    deviation = problem.deviation(problem.run(tx), expected)
    record_deviation(f"mtadam, ablation {ablation}", deviation)
    assert deviation < 1e-9
