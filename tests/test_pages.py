"""Every stage page's outputs are what it prints, and every recipe works as pasted."""

import ast
import doctest
import re

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests._params import some
from tests.test_docs import DOCS, python_blocks, run

STAGES = sorted(path for path in (DOCS / "stages").glob("*.md") if path.stem != "index")
RECIPES = sorted((DOCS / "recipes").glob("*.md"))
# Programs that take longest to compile, of stages that shorter pages and the tests of
# these stages use, too.
LONG = {
    "coming_from",
    "equinox",
    "gradient_accumulation",
    "line_searches",
    "lora",
    "own_parameters",
    "pareto_sweep",
    "popart_and_rewards",
    "production",
    "remat",
}
# Dear programs, too, of which all but the values is seen without compiling any.
TRACED = {"float16", "negative_losses", "own_gradients", "trunk_and_heads"}
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


def stem(page):
    return page.stem


STEMS = {page.stem for page in RECIPES}


@pytest.mark.parametrize("page", some(RECIPES, STEMS - LONG - TRACED, name=stem))
def test_recipe_runs_as_pasted(page, names):
    if "import equinox" in page.read_text("utf-8"):
        pytest.importorskip("equinox")
    assert names(page.stem)["mt"] is mt


@pytest.mark.parametrize("recipe", sorted(TRACED))
def test_recipe_can_be_traced_but_for_what_it_asserts_or_prints(recipe):
    page = DOCS / "recipes" / f"{recipe}.md"
    program = ast.parse("\n".join(python_blocks(page)))
    of_values = [
        line
        for line in program.body
        if isinstance(line, ast.Assert) or ast.unparse(line).startswith("print(")
    ]
    program.body = [line for line in program.body if line not in of_values]
    code = compile(program, page.name, "exec")
    jax.eval_shape(lambda: exec(code, {}))


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_recipe_is_in_the_index_and_its_programs_are_short(page):
    assert f"\nrecipes/{page.stem}\n" in (DOCS / "index.md").read_text("utf-8")
    assert max(block.count("\n") for block in python_blocks(page)) <= 60


def test_names_that_others_are_told_to_use_exist():
    page = (DOCS / "recipes" / "coming_from.md").read_text("utf-8")
    tables = page.split("\n## Names")[1].split("\n## What you will notice")[0]
    rows = re.findall(r"^\| [^|]* \| ([^|]*) \|$", tables, flags=re.MULTILINE)
    called = {name for row in rows for name in re.findall(r"`(\w+)[\(`]", row)}
    called -= {"preference", "shared"}  # arguments
    assert {
        "nash_mtl",
        "upgrad",
        "pcgrad",
        "softadapt",
        "value_and_weighted_grad",
    } <= called
    for name in called:
        assert callable(getattr(mt, name)), name


@pytest.mark.slow
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


def test_the_picture_of_the_weights_shows_them(names):
    found = names("reading_the_state")
    figure, left, weights = found["figure"], found["left"], found["seen"]["weights"]
    low, high = left.get_ylim()
    assert 0 < low <= float(weights.min()) < float(weights.max()) <= high
    left.get_legend().set_visible(False)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    for line in left.get_lines():
        colour = mpl.colors.to_rgb(line.get_color())
        assert np.isclose(pixels, colour, atol=0.02).all(-1).sum() > 100


def kept():
    """The table of what methods keep: method, field and shape as they are written."""
    page = (DOCS / "recipes" / "reading_the_state.md").read_text("utf-8")
    table = page.split("## What each method keeps")[1].split("\n\n")[1]
    for row in table.splitlines()[2:]:
        methods, entry = row.split(" | ")[:2]
        field, _, shape = entry.partition(", ")
        for method in re.findall(r"`([^`]+)`", methods):
            yield method, field.strip("`"), shape.replace("`", "")


@pytest.mark.parametrize(("method", "field", "shape"), list(kept()))
def test_methods_keep_what_the_table_says(method, field, shape):
    arguments = {
        "mtadam": "(1e-3, K)",
        "adatask_adam": "(1e-3, K)",
        "ladatask_rmsprop": "(1e-3, K)",
        "balanced": "(optax.sgd(1.0), K)",
        "metabalance": "(optax.sgd(1.0), K)",
        "adaptive_mgda": "(optax.sgd(1.0), K, steps_per_epoch=2)",
    }
    method = method.replace("...", "optax.sgd(1.0), K") + arguments.get(method, "")
    params = {"trunk": jnp.zeros((4, 5))}
    scope = {**vars(mt), "optax": optax, "K": 3, "key": jax.random.key(0)}
    state = eval(method, scope).init(params)
    if field == "none":
        with pytest.raises(KeyError):
            mt.metrics.read(state, "weights")
        return
    value = optax.tree.get(state, field)
    if "tree" in shape:
        value = value["trunk"]
    shapes = {"[K]": (3,), "[K, K]": (3, 3), "[K, *p]": (3, 4, 5)}
    assert value.shape == shapes[shape.split("leaf ")[-1]]
    if field != "weights":
        with pytest.raises(KeyError):
            mt.metrics.read(state, "weights")


@pytest.mark.slow
def test_sweep_trades_one_term_for_the_other(names):
    found = names("pareto_sweep")
    fronts = {name: np.asarray(losses) for name, losses in found["fronts"].items()}
    assert {losses.shape for losses in fronts.values()} == {(21, 2)}
    # All the weight on one term: it ends lower than with none, and the other higher.
    losses = fronts["weighted sum"]
    assert losses[-1, 0] < 0.5 * losses[0, 0]
    assert losses[0, 1] < 0.5 * losses[-1, 1]
    # Where the preference is a ray it is the other way round.
    for name in ("COSMOS", "PBI"):
        assert fronts[name][0, 0] < 0.5 * fronts[name][-1, 0]
    page = (DOCS / "recipes" / "pareto_sweep.md").read_text("utf-8")
    row = page.split("| hypervolume |")[1].split("\n")[0]
    said = [float(cell) for cell in row.strip(" |").split("|")]
    np.testing.assert_allclose(said, list(found["volumes"].values()), atol=0.01)
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


def test_weights_of_points_train_and_follow_the_residuals(names):
    found = names("self_adaptive_points")
    exact = np.sin(2 * np.pi * found["points"])
    for net in (found["self_adaptive"]["net"], found["attended"]):
        solution = jax.vmap(found["u"], (None, 0))(net, found["points"])
        assert np.sqrt(np.mean((solution - exact) ** 2)) < 0.1
    climbed = found["self_adaptive"]["points"]
    assert min(np.min(weights) for weights in climbed.values()) > 1
    weights = found["attention_state"].weights
    assert 0 < np.min(weights) < 0.5 * np.max(weights) < 5


@pytest.mark.slow
def test_popart_learns_both_scales_and_the_policy_serves_both_rewards(names):
    found = names("popart_and_rewards")
    assert np.max(found["errors"]) < 1e-4
    best = found["rewards"].max(axis=1)
    np.testing.assert_array_less(0.65 * best, found["rewards"] @ found["shares"])


@pytest.mark.slow
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
