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
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",  # formulas are drawn without the network, too
    "sphinx_copybutton",
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
nb_merge_streams = True  # what a cell prints is one block
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
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
autodoc_preserve_defaults = True

# Links into other projects' pages need their inventories, so that only a build that may
# use the network asks for them.
_others = {
    "python": "https://docs.python.org/3",
    "jax": "https://docs.jax.dev/en/latest",
    "optax": "https://optax.readthedocs.io/en/latest",
    "numpy": "https://numpy.org/doc/stable",
}
if os.environ.get("MULTITERM_DOCS_ONLINE"):
    intersphinx_mapping = {name: (url, None) for name, url in _others.items()}

# A prompt is not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

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
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"{project} {release}"


# A shape such as [K, *p] would begin an emphasis; inside literals it is left alone.
_shape = re.compile(r"``.*?``|`.*?`|(?P<shape>\[(?:\w+, )*\\?\*p\])")


def _shapes_as_literals(app, what, name, obj, options, lines):
    def literal(match):
        shape = match["shape"]
        return match[0] if shape is None else f"``{shape}``".replace("\\", "")

    lines[:] = [_shape.sub(literal, line) for line in lines]


# Unions that fill a line when spelled out, by the names that Optax gives them, and
# types by the names under which a user imports them.
_array_like = (
    "~jax.Array | ~numpy.ndarray | ~numpy.bool | ~numpy.number | bool | int | float | "
    "complex"
)
_tree = (
    f"{_array_like} | ~typing.Iterable[ArrayTree] | "
    "~typing.Mapping[~typing.Any, ArrayTree]"
)
_type_names = {
    _tree: "ArrayTree",
    f"float | ~jax.Array | ~collections.abc.Callable[[{_array_like}], {_array_like}]": (
        "ScalarOrSchedule"
    ),
    _array_like: "ArrayLike",
    "int | float | ~jax.Array": "Scalar",
    "~optax._src.base.": "~optax.",
    "~multiterm_optax._weighting.": "~multiterm_optax.",
}
_private = re.compile(r"(~multiterm_optax\.\w+)\._\w+\.")


def _types_by_name(app, what, name, obj, options, signature, returned):
    def named(text):
        for spelled_out, short in _type_names.items():
            text = text.replace(spelled_out, short)
        return _private.sub(r"\1.", text)

    return signature and named(signature), returned and named(returned)


# A narrow table may break a cell, but not within "± 0.2", "4 / 2 / 1" or "1.7 to 7.5".
_table_row = re.compile(r"^ *\|.*\|$", flags=re.MULTILINE)
_together = re.compile(
    r"`[^`]*`|(?<=±) (?=\d)|(?<=\d) (?=/ \d|to \d|[%−]|\*\*\+)"
    r"|(?<=\d /) (?=\d)|(?<=\d to) (?=\d)|(?<=\(K) (?== \d)|(?<=\(K =) (?=\d)"
)


def _numbers_stay_together(app, docname, source):
    def joined(row):
        return _together.sub(lambda m: "\xa0" if m[0] == " " else m[0], row[0])

    source[0] = _table_row.sub(joined, source[0])


def setup(app):
    """Connects the hooks; that of the docstrings ahead of napoleon's."""
    app.connect("source-read", _numbers_stay_together)
    app.connect("autodoc-process-docstring", _shapes_as_literals, priority=400)
    app.connect("autodoc-process-signature", _types_by_name)
