"""Reproductions run, as their users run them, and say what the papers say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "examples" / "reproductions"


def run(name, out, *options):
    command = [sys.executable, SCRIPTS / f"{name}.py", "--out", out, *options]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=env
    )
    assert found.returncode == 0, found.stderr


def names():
    return sorted(
        path.stem for path in SCRIPTS.glob("*.py") if "__main__" in path.read_text()
    )


# Each takes longer to compile than to train. That they start, and what they take, is
# told by default in tests/test_examples.py.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", names())
def test_short_run(name, tmp_path):
    run(name, tmp_path, "--short")
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == {f"{name}-short{end}" for end in (".md", ".json", ".png")}


def test_l1_scaled_to_l2_converges_and_l1_does_not(tmp_path):
    run("mtadam_l1_l2", tmp_path, "--seeds", "2")
    saved = {path.name for path in tmp_path.iterdir()}
    assert saved == {f"mtadam_l1_l2{end}" for end in (".md", ".json", ".png")}
    ends = json.loads((tmp_path / "mtadam_l1_l2.json").read_text())
    assert min(ends["L1, 0.01"]) > 1e-4
    assert max(ends["L1, scaled to L2, 0.01"]) < 1e-6
