"""Parkinsons telemonitoring: from a local file, or downloaded from UCI."""

from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from zipfile import ZipFile

import numpy as np

SHARED = Path(__file__).resolve().parents[3] / "shared"
LOCAL = SHARED / "data" / "parkinsons_updrs.data"
ARCHIVE = "https://archive.ics.uci.edu/static/public/189/parkinsons+telemonitoring.zip"
INPUTS = ("age", "sex", "test_time", "RPDE", "DFA", "PPE")
TARGETS = ("motor_UPDRS", "total_UPDRS", "HNR", "Shimmer", "Jitter(%)")
DEVIATIONS = (8.1, 10.7, 4.3, 0.026, 0.0056)  # of the targets


def load(path=None, stand_in=False) -> Any:
    """Inputs [5875, 6] and targets [5875, 5] of UCI's rows, float64, in their units.

    As a ``stand_in``, 200 rows of noise: nothing to download.
    """
    if stand_in:
        rng = np.random.default_rng(0)
        return rng.normal(size=(200, 6)), rng.normal(size=(200, 5)) * DEVIATIONS
    file = Path(path or LOCAL)
    text = file.read_text("ascii") if path or file.is_file() else _download()
    # Tabs separate the columns in some copies, commas in others.
    lines = text.replace("\t", ",").split("\n")
    names, *rows = [line.strip().split(",") for line in lines if line.strip()]
    columns = dict(zip(names, np.array(rows, np.float64).T, strict=True))
    x, y = ([columns[name] for name in names] for names in (INPUTS, TARGETS))
    return np.stack(x, axis=1), np.stack(y, axis=1)


def _download():
    with urlopen(ARCHIVE) as answer, ZipFile(BytesIO(answer.read())) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(LOCAL.name))
        return archive.read(name).decode("ascii")
