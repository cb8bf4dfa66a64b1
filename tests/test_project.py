"""What a stranger meets first: the version, the requirements, the addresses."""

import importlib.metadata
import re
import runpy
import tomllib
from pathlib import Path

import pytest

import multiterm_optax as mt

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
PAGES = [ROOT / "CITATION.cff", ROOT / "SECURITY.md", *(ROOT / ".github").rglob("*.*")]


def pins(**project):
    script = runpy.run_path(str(ROOT / ".ci" / "lower_bounds.py"))
    return script["lower_bounds"](PROJECT | project)


def test_version_is_that_of_pyproject():
    hint = "pyproject.toml has a new version: install the package anew"
    assert mt.__version__ == PROJECT["version"], hint


def test_version_of_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    names = runpy.run_path(str(Path(mt.__file__).parent / "_version.py"))
    assert names["__version__"] == "0+unknown"


def test_lower_bounds_are_the_requirements_with_another_sign():
    required = [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["plotting"],
    ]
    assert [pin.replace("==", ">=") for pin in pins()] == required
    assert {"jax", "jaxtyping", "numpy", "optax"} <= {p.split("==")[0] for p in pins()}


@pytest.mark.parametrize("requirement", ["jax", "jax>=0.10,<1", "jax~=0.10"])
def test_requirement_without_one_plain_lower_bound_is_refused(requirement):
    with pytest.raises(SystemExit, match=re.escape(requirement)):
        pins(dependencies=[requirement])


def test_hosted_checks_run_on_the_pythons_that_are_promised():
    promised = {
        label.rsplit(" ", 1)[1]
        for label in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", label)
    }
    assert set(re.findall(r'- python: "(3\.\d+)"', WORKFLOW)) == promised
    lowest = min(promised, key=lambda version: int(version.split(".")[1]))
    assert PROJECT["requires-python"] == f">={lowest}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_addresses_are_of_one_repository(page):
    source = PROJECT["urls"]["Source"]
    for address in re.findall(r"https://github\.com/[^\s)]*", page.read_text("utf-8")):
        assert f"{address}/".startswith(f"{source}/")


def test_addresses_lead_to_files_that_exist():
    source = PROJECT["urls"]["Source"]
    texts = [*PROJECT["urls"].values(), *(page.read_text("utf-8") for page in PAGES)]
    linked = re.findall(re.escape(source) + r"/blob/main/([^\s)]+)", "\n".join(texts))
    assert linked
    for name in linked:
        assert (ROOT / name).is_file(), name
