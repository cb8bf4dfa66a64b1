"""Adult: from a local file, or downloaded once. Each person has two labels."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

LOCAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "adult.data.gz"
COLUMNS = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "class",
]
NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
# The second label, what gives it away (husband, wife, own child), and a survey weight.
LEFT_OUT = ("marital-status", "relationship", "fnlwgt", "class")
LABELS = ("income over 50K", "never married")
ROWS, VALID, TEST = 32_561, 4_000, 8_561


def load(path=None, stand_in=False) -> Any:
    """``(x, y)`` for training (20,000 rows), validation (4,000) and the test (8,561).

    The rows are those of UCI's ``adult.data``. x, float32 [N, 94]: five numbers, the
    capital gain and loss as logarithms, in units of their spread in the training
    rows, and the classes of seven columns as zeros and ones, a missing value being a
    class. y, int32 [N, 2]: income over 50K, never married. The split is the same at
    each call. As a ``stand_in``, 400 rows of noise for each part: nothing to download.
    """
    if stand_in:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(3, 400, 94)).astype(np.float32)
        return tuple(zip(x, rng.integers(2, size=(3, 400, 2)), strict=True))
    columns = _read(path) if path or LOCAL.is_file() else _fetch()
    labels = [columns["class"] == ">50K", columns["marital-status"] == "Never-married"]
    y = np.stack(labels, axis=1).astype(np.int32)
    order = np.random.default_rng(0).permutation(len(y))
    test, valid, train = np.split(order, [TEST, TEST + VALID])

    parts = []
    for name in COLUMNS:
        if name in NUMBERS:
            number = columns[name].astype(np.float64)
            if name.startswith("capital"):
                number = np.log1p(number)
            number = (number - number[train].mean()) / number[train].std()
            parts.append(number[:, None])
        elif name not in LEFT_OUT:
            parts.append(columns[name][:, None] == np.unique(columns[name]))
    x = np.concatenate(parts, axis=1).astype(np.float32)
    return tuple((x[rows], y[rows]) for rows in (train, valid, test))


def _read(path=None):
    """The columns of UCI's file, all as text."""
    with gzip.open(path or LOCAL, "rt", encoding="ascii") as file:
        rows = [line.strip().split(", ") for line in file if line.strip()]
    return dict(zip(COLUMNS, np.array(rows).T, strict=True))


def _fetch():
    """The same from OpenML, where UCI's test rows come first."""
    from sklearn.datasets import fetch_openml

    # This parser needs no pandas; it gives classes as indices of their names.
    found: Any = fetch_openml("adult", version=2, as_frame=False, parser="liac-arff")
    columns = {"class": np.asarray(found.target, str)[-ROWS:]}
    for name, values in zip(found.feature_names, found.data.T, strict=True):
        values = values[-ROWS:]
        if name in found.categories:
            known = np.array([*found.categories[name], "?"])
            missing = np.isnan(values)
            values = known[np.where(missing, len(known) - 1, values).astype(int)]
        columns[name] = values
    return columns
