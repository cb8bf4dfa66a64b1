"""What every test runs under: CPU, run-time checks of annotations, one profile."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Before anything imports the package: its annotations are then checked at each call.
install_import_hook("multiterm_optax", "beartype.beartype")

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

DEVIATION = "deviation from the transcription"


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs that run a few times each, on tiny arrays, need not be made fast.

    Not for tests that count bytes or operations, or that promise digits.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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
