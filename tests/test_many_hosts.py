"""The example really runs as two processes, and none of them can outlive the test."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "many_hosts.py"

no_gloo = pytest.mark.skipif(
    sys.platform == "win32", reason="jaxlib has no gloo on this platform"
)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("many_hosts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(line):
    return [float(n) for n in re.findall(r"\d+\.\d+", line)]


@no_gloo
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param([], id="copied"),
        pytest.param(["--fsdp"], id="fsdp", marks=pytest.mark.slow),
    ],
)
def test_two_processes_find_what_one_finds(layout):
    # The script stops its processes after --timeout, and the outer limit stops it.
    run = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            *["--processes", "2", "--steps", "10", "--timeout", "60"],
            *layout,
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "processes: 2, devices: 4" in lines
    assert "processes: 1, devices: 1" in lines
    two, one = (numbers(line) for line in lines if "weights" in line and "," in line)
    np.testing.assert_allclose(two, one, atol=2e-6)
    *_, first, second = one
    assert first + second == pytest.approx(1, abs=2e-6)
    assert 0.05 < first < 0.95  # weights that the gradients had a say in
    (worst,) = re.findall(r"largest difference of .*: (\S+)", run.stdout)
    assert float(worst) <= 1e-5


def sleeper(seconds):
    return subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep({seconds})"]
    )


def test_a_process_that_fails_stops_the_others(example):
    began = time.monotonic()
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    other = sleeper(60)
    with pytest.raises(SystemExit, match="failed"):
        example.wait([failed, other], seconds=30)
    assert time.monotonic() - began < 30
    assert other.poll() is not None


def test_processes_that_hang_are_stopped(example):
    hung = [sleeper(60), sleeper(60)]
    with pytest.raises(SystemExit, match="not done after"):
        example.wait(hung, seconds=0.2)
    assert all(worker.poll() is not None for worker in hung)


@pytest.mark.parametrize("processes", ["0", "3"])
def test_rows_must_divide(example, processes, capsys):
    with pytest.raises(SystemExit):
        example.main(["--processes", processes])
    assert "--processes" in capsys.readouterr().err
