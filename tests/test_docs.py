"""The documentation names what the package exports, and nothing else."""

import importlib
import inspect
import pkgutil
import re
from functools import reduce
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import multiterm_optax

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def public_names(module):
    """The names a module exports, less its submodules."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name in vars(module) if not name.startswith("_")]
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def exported():
    """Every public name, as reached from the top level where it can be.

    A stage's name that the top level exports too counts once, as the top level's;
    one of a submodule such as ``metrics`` is ``metrics.norms``.
    """
    names = set(public_names(multiterm_optax))
    for info in pkgutil.iter_modules(multiterm_optax.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"multiterm_optax.{info.name}")
        for name in public_names(module):
            top = getattr(multiterm_optax, name, None)
            if top is not getattr(module, name):
                names.add(f"{info.name}.{name}")
    return sorted(names)


def documented():
    """The entries of the autosummary tables in docs/api."""
    pages = sorted((DOCS / "api").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(r"^ {3}~?([A-Za-z]\w*(?:\.\w+)*)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", exported())
def test_public_name_is_in_the_api_page(name):
    assert name in documented(), f"add {name} to its page in docs/api"


@pytest.mark.parametrize("name", documented())
def test_documented_name_exists_and_has_a_docstring(name):
    symbol = reduce(getattr, name.split("."), multiterm_optax)
    assert inspect.getdoc(symbol)


def test_api_page_names_each_thing_once():
    names = documented()
    assert names, "no entry was found in docs/api"
    assert len(names) == len(set(names))


def python_blocks(page):
    text = page.read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run(blocks, page):
    """Runs the blocks in order, as a reader would type them."""
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    return namespace


def test_quickstart_trains():
    plain_optax, *blocks = python_blocks(DOCS / "quickstart.md")
    assert "value_and_grad" in plain_optax  # for comparison, with names of no example
    names = run(blocks, "quickstart.md")
    untrained = {key: 0.0 * value for key, value in names["params"].items()}
    before = names["losses_fn"](untrained, names["batch"])
    for term in ("y", "z"):
        assert names["losses"][term] < 0.1 * before[term]


def test_index_example_runs():
    names = run(python_blocks(DOCS / "index.md"), "index.md")
    assert names["grads"].shape == (2, 3)
    assert names["updates"].shape == (3,)
    assert bool((names["params"] > 0).all())


@pytest.mark.parametrize("side", ["-", "+"])
def test_index_loop_runs_before_and_after_the_change(side):
    names = run(python_blocks(DOCS / "index.md"), "index.md")
    names["params"] = start = 0.0 * names["params"]
    diff = re.search(r"```diff\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.S)
    lines = diff[1].splitlines()
    code = "\n".join(line[1:] for line in lines if line[:1] in (side, " "))
    exec(compile(code, "index.md", "exec"), names)
    assert bool((names["params"] > start).all())


def test_contributing_sketches_compute_what_they_say():
    names = run(python_blocks(ROOT / "CONTRIBUTING.md"), "CONTRIBUTING.md")
    weighting = names["inverse_norm"]()
    state = weighting.init(2)
    for scale in (1.0, 1e-30):
        gramian = scale * jnp.array([[1.0, 0.5], [0.5, 4.0]])
        weights, _ = weighting.update(gramian, state)
        np.testing.assert_allclose(weights, [2 / 3, 1 / 3], rtol=1e-6)
    weights, _ = weighting.update(jnp.zeros((2, 2)), state)
    np.testing.assert_allclose(weights, [0.5, 0.5])

    median = names["median_terms"]()
    params = jnp.zeros(2)
    grads = jnp.array([[1.0, -3.0], [2.0, 0.0], [90.0, 4.0]])
    updates, _ = median.update(grads, median.init(params), params)
    np.testing.assert_array_equal(updates, [2.0, 0.0])


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("penalty entropy regularisation", "metrics.md"),
        ("cite", "index.md"),
        ("ask", "index.md"),
        ("complex parameters", "composition.md"),
    ],
)
def test_what_is_searched_stands_in_a_heading_of_the_page_that_answers(words, page):
    # The search of the documentation ranks headings first.
    headings = re.findall(r"^#+ (.*)$", (DOCS / page).read_text("utf-8"), re.MULTILINE)
    found = re.findall(r"\w+", " ".join(headings).lower())
    assert set(words.split()) <= set(found)
