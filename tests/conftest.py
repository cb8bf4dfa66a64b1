"""What every test runs under: CPU, run-time checks of annotations, one profile."""

import gc
import os
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# In the environment, so that the processes that tests start have the same settings.
for variable, setting in {
    "JAX_PLATFORMS": "cpu",
    # Making programs takes most of the time. Workers and later runs share them.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Programs that run a few times each, on tiny arrays, need not be made fast. XLA's
    # own counts of bytes and operations are the same, since only LLVM does less.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # Threads of NumPy's that wait for a busy core cost more than they bring.
    "OPENBLAS_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(variable, setting)

# JAX's many small objects need not be searched often, from the first import on.
gc.set_threshold(100_000, 20, 20)

from tests import _annotations

# Before anything imports the package: its annotations are then checked at each call.
_annotations.install("multiterm_optax")

import jax
import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

# Eight devices, to lay arrays over; those of no sharding stay on the first. More
# devices than cores cost threads that sleep, and the other tests no time.
jax.config.update("jax_num_cpu_devices", 8)

settings.register_profile(
    "default",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")

QUICK = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() not in ("0", "false")
DEVIATION = "deviation from the transcription"
DAYS_KEPT = 14


def pytest_configure(config):
    """Old programs leave the cache, which would grow with every change else."""
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        return
    oldest = time.time() - DAYS_KEPT * 24 * 3600
    for program in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("jit_*-cache"):
        if program.stat().st_mtime < oldest:
            program.unlink(missing_ok=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """All tests of a file on one worker: they share what it has traced and compiled."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_collection_finish():
    """What is imported stays, and need not be searched again."""
    gc.freeze()


def pytest_sessionfinish():
    """Nor what the tests leave, which pytest would search once more at the end."""
    gc.freeze()


@pytest.fixture
def full_compilation():
    """Programs as users have them, for bounds that are a rounding of such programs."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", QUICK)


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def own_errors():
    """Bad input reaches the library's own checks, as it does for a user.

    Outside the tests nobody installs a type checker, so that the message a user sees
    is the library's and not the checker's.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def record_deviation(request):
    """Notes how far a method is from its transcription, for the summary."""

    def record(method, deviation):
        request.node.user_properties.append((DEVIATION, (method, float(deviation))))

    return record


def pytest_terminal_summary(terminalreporter):
    """Prints the largest deviation of each method, also when workers ran the tests."""
    largest = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for kind, entry in getattr(report, "user_properties", ()):
                if kind == DEVIATION and report.when == "call":
                    method, deviation = entry
                    largest[method] = max(largest.get(method, 0.0), deviation)
    if largest:
        terminalreporter.section("largest relative deviations from the transcriptions")
        for method, deviation in sorted(largest.items()):
            terminalreporter.line(f"{method:40s} {deviation:.1e}")
