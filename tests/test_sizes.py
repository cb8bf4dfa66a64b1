"""The sizes that CONTRIBUTING.md asks for: what one reader can hold in mind at once."""

import ast
from functools import cache
from pathlib import Path

import pytest

import multiterm_optax

PACKAGE = Path(multiterm_optax.__file__).parent
ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted(PACKAGE.rglob("*.py"))
MODULES = [
    *LIBRARY,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "examples").rglob("*.py")),
]
STAGES = (
    "gradients",
    "weightings",
    "transforms",
    "aggregators",
    "wrappers",
    "optimizers",
)

MODULE = 400
METHOD = 150
DOCSTRING = 60
MOST_DOCSTRINGS = 40
# The share of the public docstrings, those of one line aside, that may be longer.
LONGER = 0.12

# The first line of a longer file of a method says why it is.
REASON = "# Longer than most: "

TO_THE_PAGE = "the long mathematics belongs to the page of the method"


def name_of(path, folder=ROOT):
    return path.relative_to(folder).as_posix()


@cache
def parsed(path):
    return ast.parse(path.read_text("utf-8"))


@cache
def lines(path):
    return path.read_text("utf-8").splitlines()


def gives_reason(path):
    return "\n".join(lines(path)).startswith(REASON)


def docstrings(tree):
    """Name and length of each docstring in a module, its own and nested ones too."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            text = node.body[0]
            name = getattr(node, "name", "module")
            yield name, text.end_lineno - text.lineno + 1


def long_docstrings(limit):
    found = set()
    for path in LIBRARY:
        sizes = docstrings(parsed(path))
        found |= {name for name, length in sizes if length > limit}
    return found


def test_no_module_is_too_long():
    found = [name_of(path) for path in MODULES if len(lines(path)) > MODULE]
    assert not found, f"{found}: over {MODULE} lines; split it"


def test_a_method_s_file_is_short_or_says_why_not():
    found = set()
    for path in LIBRARY:
        stage = path.relative_to(PACKAGE).parts[0]
        long = stage in STAGES and len(lines(path)) > METHOD
        if long and not gives_reason(path):
            found.add(name_of(path, PACKAGE))
    advice = f"over {METHOD} lines; shorten it, or begin it with '{REASON}...'"
    assert not found, f"{sorted(found)}: {advice}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: name_of(path, PACKAGE))
def test_a_reason_is_given_where_it_is_needed_only(path):
    if gives_reason(path):
        first, *others = lines(path)
        assert len(others) >= METHOD, "short enough by now: take the reason away"
        assert first.removeprefix(REASON).strip(), "and why?"


def test_no_docstring_is_too_long():
    advice = f"a docstring over {DOCSTRING} lines; {TO_THE_PAGE}"
    found = long_docstrings(DOCSTRING)
    assert not found, f"{sorted(found)}: {advice}"


def test_most_docstrings_are_shorter_still():
    long, all_of_them = [], 0
    for path in LIBRARY:
        for node in parsed(path).body:
            if getattr(node, "name", "_").startswith("_"):
                continue
            for name, length in docstrings(node):
                all_of_them += length > 1
                if length > MOST_DOCSTRINGS:
                    long.append(name)
    assert len(long) <= LONGER * all_of_them, f"{sorted(long)} of {all_of_them}"


def test_the_measure_counts_the_quotes():
    tree = ast.parse('"""One."""\n\n\ndef two():\n    """Two\n\n    lines.\n    """\n')
    assert dict(docstrings(tree)) == {"module": 1, "two": 4}
