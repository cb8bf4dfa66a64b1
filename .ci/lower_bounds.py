"""Prints the lowest versions that pyproject.toml allows, as constraints for pip.

python .ci/lower_bounds.py > bounds.txt
pip install -c bounds.txt -e ".[test]"
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
# What a user of the library installs; the other extras are for its developers.
EXTRAS = ("plotting",)


def lower_bounds(project):
    """The pins ``name==version`` of a ``[project]`` table, one a requirement."""
    requirements = [*project["dependencies"]]
    for extra in EXTRAS:
        requirements += project["optional-dependencies"][extra]
    pins = []
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if match is None:
            sys.exit(
                f"pyproject.toml: expected a requirement such as name>=1.2, found "
                f"{requirement!r}"
            )
        pins.append("{}=={}".format(*match.groups()))
    return pins


if __name__ == "__main__":
    print(*lower_bounds(tomllib.loads(PYPROJECT.read_text())["project"]), sep="\n")
