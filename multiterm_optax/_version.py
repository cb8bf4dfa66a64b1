"""The version, which pyproject.toml states and the installed metadata repeat."""

import importlib.metadata


def _installed() -> str:
    try:
        return importlib.metadata.version("multiterm-optax")
    except importlib.metadata.PackageNotFoundError:
        # A checkout that is on the path without being installed.
        return "0+unknown"


__version__ = _installed()
