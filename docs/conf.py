"""Sphinx configuration; nothing in it needs the network."""

import os
import re
import shutil
import tomllib
from pathlib import Path

# Importing the package must not wait for an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_root = Path(__file__).resolve().parent.parent
_project = tomllib.loads((_root / "pyproject.toml").read_text())["project"]

project = _project["name"]
release = version = _project["version"]
author = "The multiterm-optax authors"
copyright = author

extensions = [
    "myst_nb",  # Markdown by myst_parser, and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]

exclude_patterns = ["_build"]
templates_path = ["_templates"]
source_suffix = {
    ".rst": "restructuredtext",
    ".md": "myst-nb",
    ".ipynb": "myst-nb",
}

# Notebooks are shown with the outputs that they hold; nothing runs here. Sphinx reads
# below its own folder only, so that they are copied to where Git does not look.
nb_execution_mode = "off"
_notebooks = Path(__file__).parent / "generated" / "notebooks"
shutil.rmtree(_notebooks, ignore_errors=True)
shutil.copytree(
    _root / "notebooks",
    _notebooks,
    ignore=lambda _, names: [name for name in names if not name.endswith(".ipynb")],
)

# One page for each public symbol, written to docs/generated while building.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
# Optax's types are unions that fill a page when spelled out; the argument lists say in
# words what each argument is.
autodoc_typehints = "none"
autodoc_preserve_defaults = True

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_custom_sections = ["Source"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# A section included from CONTRIBUTING.md keeps its own heading levels.
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = f"{project} {release}"


# A shape such as [K, *p] would begin an emphasis; inside literals it is left alone.
_shape = re.compile(r"``.*?``|`.*?`|(?P<shape>\[(?:\w+, )*\\?\*p\])")


def _shapes_as_literals(app, what, name, obj, options, lines):
    def literal(match):
        shape = match["shape"]
        return match[0] if shape is None else f"``{shape}``".replace("\\", "")

    lines[:] = [_shape.sub(literal, line) for line in lines]


def setup(app):
    """Connects the hook, ahead of napoleon's."""
    app.connect("autodoc-process-docstring", _shapes_as_literals, priority=400)
