"""The gramian from activations and cotangents, for models of every structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiterm_optax.gradients import _cut_products, _cuts, _gramian
from multiterm_optax.gradients._row_problem import row_problem
from tests._asserts import assert_close
from tests.gradients._models import MODELS, ROWS, SOME, names
from tests.gradients._weighted import flat

FACTORS = np.array([0.2, 1.7, -0.4])

# One model for each kind of cut. Here the norms are found, too, and pairs of positions
# are multiplied as well as gradients; else that is a matter of sizes.
KINDS = {"attention", "convolution", "dense", "embedding", "ensemble"}


def apart(found, rows):
    """From the products of rows, relative to the lengths of the two of each entry."""
    expected, lengths = rows @ rows.T, np.linalg.norm(rows, axis=1)
    return np.max(np.abs(found - expected) / lengths / lengths[:, None])


def two_terms(losses):
    """They share the rows: a term of all of them, and one of two of them."""
    return jnp.stack([jnp.sum(losses**2) / 8, losses[1:].sum()])


@pytest.mark.parametrize("name", SOME)
@pytest.mark.usefixtures("x64")
def test_every_structure(name, monkeypatch, record_deviation):
    params, row_losses, rows, cut = MODELS[name]()

    def of_shared_rows(params, rows):
        losses_fn = lambda p: two_terms(row_losses(p, rows))  # noqa: E731
        losses, linear = jax.linearize(losses_fn, params)
        program = _cuts.find(linear, (params,), lambda cut: True)
        assert {names(params)[one.leaf] for one in program.cuts} == cut
        # Small models are cut, too.
        monkeypatch.setattr(_cut_products, "worth", lambda *args, **kwargs: True)
        more = {"num_terms": 2, "way": None, "shared": None, "name": ""}
        functions = [_gramian.gramian_of, _gramian.squared_norms_of]
        functions = functions if name in KINDS else functions[:1]
        return [find(linear, (params,), losses, **more) for find in functions]

    def of_own_rows(params, rows):
        problem = row_problem(row_losses, ROWS, None, "", params, rows)
        found = [] if name in KINDS else [(problem.gramian(None),)]
        for pairs in (True, False) if name in KINDS else ():
            decided = lambda *args, pairs=pairs: pairs  # noqa: E731
            monkeypatch.setattr(_cut_products, "_pairs_are_cheaper", decided)
            found.append((problem.gramian(None), problem.squared_norms(None)))
        return problem.losses, problem.pullback(jnp.asarray(FACTORS)), found

    @jax.jit
    def compared(params, rows):
        expected = row_losses(params, rows), jax.jacrev(row_losses)(params, rows)
        return expected, of_shared_rows(params, rows), of_own_rows(params, rows)

    (expected, jacobian), shared, (losses, grads, own) = compared(params, rows)
    each = flat(jacobian)
    assert_close(losses, expected, rtol=1e-12)
    total = jax.tree.map(lambda leaf: np.tensordot(FACTORS, leaf, 1), jacobian)
    assert_close(grads, total, rtol=1e-10, atol=1e-12)
    for gramian, *norms in own:
        record_deviation("gramian of rows", apart(gramian, each))
        assert apart(gramian, each) < 1e-10
        assert_close(norms, [np.diag(gramian)] * len(norms), rtol=1e-12)

    gramian, *norms = shared
    of_terms = np.stack([np.asarray(expected) / 4 @ each, each[1:].sum(0)])
    record_deviation("gramian from activations", apart(gramian, of_terms))
    assert apart(gramian, of_terms) < 1e-12
    assert_close(norms, [np.diag(gramian)] * len(norms), rtol=1e-12)
