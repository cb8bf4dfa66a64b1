"""Optimizers with absent terms, by masks that change, against transcriptions."""

import jax
import numpy as np
import optax
import pytest

from multiterm_optax import (
    adaptive_mgda,
    adatask_adam,
    balance_by_norm,
    ladatask_rmsprop,
    mtadam,
    scale_by_max_adam,
)
from tests._absent import PARAMS, K, draw, spoiled


def changing(steps, seed):
    """Gradients and masks [steps, K]: late terms, pauses, and a step of none."""
    grads, _ = draw(steps=steps, seed=seed)
    grads["w"][:, 0, 2] = grads["w"][:, 1, 2] = 0  # only the last term moves it
    masks = np.random.default_rng(seed).random((steps, K)) < 0.6
    masks[:3] = [[False, True, False], [False, True, False], [True, True, False]]
    masks[7] = False
    assert not masks.all(axis=0).any()
    assert masks.any(axis=0).all()
    return grads, masks


def follow(tx, grads, masks):
    """Updates of every step, with rubbish in the place of absent gradients."""

    def step(state, data):
        grad, mask = data
        updates, state = tx.update(grad, state, PARAMS, present=mask)
        return state, (updates, state)

    data = spoiled(grads, masks), masks
    return jax.jit(lambda s: jax.lax.scan(step, s, data)[1])(tx.init(PARAMS))


def by_term(grads, t):
    """Gradients at step t, a list of leaves for each term."""
    return [[grads["s"][t, i], grads["w"][t, i]] for i in range(K)]


def balanced(g, there, n, b3):
    """One step of MTAdam's lines 6 to 8 in the authors' form, terms left out."""
    for leaf in range(2):
        for i in there:
            norm = np.sqrt(np.sum(g[i][leaf] ** 2))
            seen = n[i][leaf] is not None
            n[i][leaf] = b3 * n[i][leaf] + (1 - b3) * norm if seen else norm
        # Absent terms are known by what they were.
        anchor = next((n[i][leaf] for i in range(K) if n[i][leaf] is not None), None)
        for i in there:
            g[i][leaf] = anchor / n[i][leaf] * g[i][leaf]
    return g


def leaves_of(updates):
    return [np.asarray(updates["s"]), np.asarray(updates["w"])]


def assert_follows(updates, expected):
    """Steps by leaves against a list of lists."""
    for leaf, found in enumerate(leaves_of(updates)):
        exact = np.stack([step[leaf] for step in expected])
        np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-14)


def test_balance_by_norm_follows_its_transcription(x64):
    grads, masks = changing(20, seed=3)
    updates, states = follow(balance_by_norm(K, 0.8), grads, masks)
    n, expected = [[None, None] for _ in range(K)], []
    for t in range(20):
        there = np.flatnonzero(masks[t])
        g = balanced(by_term(grads, t), there, n, 0.8)
        zeros = [np.zeros(()), np.zeros(4)]
        rows = [g[i] if i in there else zeros for i in range(K)]
        expected.append([np.stack([row[leaf] for row in rows]) for leaf in range(2)])
        for leaf, name in enumerate(("s", "w")):
            known = [0.0 if n[i][leaf] is None else n[i][leaf] for i in range(K)]
            np.testing.assert_allclose(states.norms[name][t], known, rtol=1e-12)
    assert_follows(updates, expected)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_mtadam_follows_its_transcription(x64, reduction):
    b1, b2, b3, eps, rate = 0.8, 0.95, 0.7, 1e-6, 0.1
    grads, masks = changing(20, seed=4)
    tx = mtadam(rate, K, b1, b2, b3, eps)
    if reduction == "mean":
        tx = optax.chain(
            balance_by_norm(K, b3),
            scale_by_max_adam(K, b1, b2, eps, reduction="mean"),
            optax.scale_by_learning_rate(rate),
        )
    updates, _ = follow(tx, grads, masks)
    n, expected = [[None, None] for _ in range(K)], []
    m = [np.zeros(()), np.zeros(4)]
    v = [[np.zeros(()), np.zeros(4)] for _ in range(K)]
    own = np.zeros(K, int)
    for t in range(20):
        there = np.flatnonzero(masks[t])
        g, own[there] = balanced(by_term(grads, t), there, n, b3), own[there] + 1
        step = []
        for leaf in range(2):
            total = sum((g[i][leaf] for i in there), start=0.0)
            m[leaf] = b1 * m[leaf] + (1 - b1) * total
            for i in there:
                v[i][leaf] = b2 * v[i][leaf] + (1 - b2) * g[i][leaf] ** 2
            hats = [v[i][leaf] / (1 - b2 ** own[i]) for i in range(K) if own[i]]
            reduced = np.max(hats, axis=0) if reduction == "max" else np.mean(hats, 0)
            m_hat = m[leaf] / (1 - b1 ** (t + 1))
            step.append(-rate * m_hat / (np.sqrt(reduced) + eps))
        expected.append(step)
    assert_follows(updates, expected)


def test_adatask_adam_follows_its_transcription(x64):
    b1, b2, eps, rate = 0.8, 0.95, 1e-6, 0.1
    grads, masks = changing(20, seed=5)
    updates, _ = follow(adatask_adam(rate, K, b1, b2, eps), grads, masks)
    m = [[np.zeros(()), np.zeros(4)] for _ in range(K)]
    v = [[np.zeros(()), np.zeros(4)] for _ in range(K)]
    own, expected = np.zeros(K, int), []
    for t in range(20):
        g, step = by_term(grads, t), [np.zeros(()), np.zeros(4)]
        for i in np.flatnonzero(masks[t]):
            own[i] += 1
            for leaf in range(2):
                m[i][leaf] = b1 * m[i][leaf] + (1 - b1) * g[i][leaf]
                v[i][leaf] = b2 * v[i][leaf] + (1 - b2) * g[i][leaf] ** 2
                root = np.sqrt(v[i][leaf] / (1 - b2 ** own[i])) + eps
                m_hat = m[i][leaf] / (1 - b1 ** own[i])
                step[leaf] = step[leaf] - rate * m_hat / root
        expected.append(step)
    assert_follows(updates, expected)


def test_ladatask_follows_its_transcription(x64):
    decay, eps, rate = 0.9, 1e-6, 0.1
    grads, masks = changing(20, seed=6)
    updates, _ = follow(ladatask_rmsprop(rate, K, decay, eps), grads, masks)
    C = np.zeros((K, 2))
    G, expected = [np.zeros(()), np.zeros(4)], []
    for t in range(20):
        g, step = by_term(grads, t), [np.zeros(()), np.zeros(4)]
        there = np.flatnonzero(masks[t])
        for leaf in range(2):
            total = sum((g[i][leaf] ** 2 for i in there), start=0.0)
            G[leaf] = decay * G[leaf] + (1 - decay) * total
            for i in there:
                squares = np.sum(g[i][leaf] ** 2)
                C[i, leaf] = decay * C[i, leaf] + (1 - decay) * squares
                # What is in G adds up to all the C that are, or were, part of it.
                own = C[i, leaf] * G[leaf] / np.sum(G[leaf])
                step[leaf] = step[leaf] - rate * g[i][leaf] / (np.sqrt(own) + eps)
        expected.append(step)
    assert_follows(updates, expected)


def test_adaptive_mgda_measures_the_steps_a_term_was_there(x64):
    grads, masks = changing(12, seed=7)
    masks[6:, 2] = np.arange(6) == 4  # a single gradient in the second epoch
    tx = adaptive_mgda(optax.sgd(0.1), K, 1.0, steps_per_epoch=6)
    _, states = follow(tx, grads, masks)
    rows = np.concatenate([grads["s"][..., None], grads["w"]], axis=2)
    eps = np.zeros(K)
    for start in (0, 6):
        for i in range(K):
            mine = rows[start : start + 6, i][masks[start : start + 6, i]]
            if len(mine) > 1:
                eps[i] = np.sqrt(np.mean(np.sum((mine - mine.mean(0)) ** 2, axis=1)))
        np.testing.assert_allclose(states.eps[start + 5], eps, rtol=1e-12)
    assert masks[:6, 2].sum() > 1
