"""Every stage page's outputs are what it prints, and every recipe works as pasted."""

import doctest
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests.test_docs import DOCS, python_blocks, run

STAGES = sorted(path for path in (DOCS / "stages").glob("*.md") if path.stem != "index")
RECIPES = sorted((DOCS / "recipes").glob("*.md"))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def failures(text, name):
    """Runs the page's examples in order, in one namespace; returns what differed."""
    blocks = re.findall(r"```pycon\n(.*?)```", text, flags=re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("".join(blocks), {}, name, name, 0)
    assert examples.examples, "no example was found"
    said = []
    doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("page", STAGES, ids=lambda page: page.stem)
def test_stage_page_prints_what_it_says(page):
    assert failures(page.read_text("utf-8"), page.name) == ""


def test_a_wrong_output_is_noticed():
    assert "Expected" in failures("```pycon\n>>> 1 + 1\n3\n\n```", "wrong.md")


def test_every_stage_has_its_page_in_the_index():
    index = (DOCS / "stages" / "index.md").read_text("utf-8")
    listed = index.split("```{toctree}")[1].split()
    assert {page.stem for page in STAGES} <= set(listed)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What a recipe's blocks have defined, run in an empty folder; each run once."""
    import matplotlib as mpl

    mpl.use("Agg")
    found = {}

    def names_of(recipe):
        if recipe not in found:
            page = DOCS / "recipes" / f"{recipe}.md"
            with pytest.MonkeyPatch.context() as patch:
                folder = tmp_path_factory.mktemp(recipe)
                patch.chdir(folder)
                found[recipe] = run(python_blocks(page), page.name)
            found[recipe]["folder"] = folder
        return found[recipe]

    return names_of


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_recipe_runs_as_pasted(page, names):
    assert names(page.stem)["mt"] is mt


def test_trunk_weights_come_from_the_trunk(names):
    found = names("trunk_and_heads")
    np.testing.assert_allclose(np.sum(found["weights"]), 1.0, rtol=1e-5)
    assert found["weights"].shape == (2,)


def test_reading_the_state_stacks_over_the_steps(names):
    found = names("reading_the_state")
    seen = found["seen"]
    assert seen["weights"].shape == (300, 2)
    assert {k: v.shape for k, v in seen["losses"].items()} == {"y": (300,), "z": (300,)}
    assert seen["shares"].shape == (300, 2, 5)
    np.testing.assert_allclose(np.sum(seen["shares"], axis=2), 1.0, rtol=1e-5)
    assert (found["folder"] / "weights_and_dominance.png").stat().st_size > 0


def test_sweep_trades_one_term_for_the_other(names):
    found = names("pareto_sweep")
    losses = np.asarray(found["losses"])
    assert losses.shape == (21, 2)
    # All the weight on one term: it ends lower than with none, and the other higher.
    assert losses[-1, 0] < 0.5 * losses[0, 0]
    assert losses[0, 1] < 0.5 * losses[-1, 1]
    assert (found["folder"] / "pareto.png").stat().st_size > 0


def test_master_copies_take_steps_that_bfloat16_loses(names):
    found = names("half_precision")
    np.testing.assert_allclose(found["masters"], 2.0, atol=0.01)
    tx, losses_fn = found["tx"], found["losses_fn"]

    @jax.jit
    def step(params, state):
        grads = mt.term_grads(losses_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = np.ones(4, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(3000):
        params, state = step(params, state)
    np.testing.assert_array_equal(params.astype(jnp.float32), 1.0)


def test_sweep_with_balanced_weights_as_its_note_says(names):
    """``mtadam(weights=...)`` with traced weights, under vmap."""
    losses_fn = names("pareto_sweep")["losses_fn"]
    params = {"in": np.full((6, 16), 0.1), "out": np.full(16, 0.1)}
    params = jax.tree.map(np.float32, params)

    def updates(weights):
        tx = mt.mtadam(3e-2, 2, weights=weights)
        return tx.update(mt.term_grads(losses_fn)(params), tx.init(params), params)[0]

    weights = np.eye(2, dtype=np.float32)
    many = jax.tree.map(np.asarray, jax.jit(jax.vmap(updates))(weights))
    each = map(jax.jit(updates), weights)
    for i, one in enumerate(each):
        for name in params:
            np.testing.assert_allclose(many[name][i], one[name], rtol=1e-4, atol=1e-7)
