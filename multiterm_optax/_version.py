"""The version, from the installed metadata, which take it from pyproject.toml."""

import importlib.metadata


def _installed() -> str:
    try:
        return importlib.metadata.version("multiterm-optax")
    except importlib.metadata.PackageNotFoundError:
        # The package is on the path without being installed.
        return "0+unknown"


__version__ = _installed()
