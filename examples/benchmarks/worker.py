"""The process that runs one framework's steps when the parent asks for them."""

import gc
import importlib
import importlib.metadata
import os
import resource
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MB = 2**20
SLOW = 5.0  # seconds; such steps are taken no more often than needed


def main(connection: Any, framework: str, threads: int) -> None:
    """Answers requests ``(command, *arguments)`` until it is told to quit."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    worker = Worker(importlib.import_module(framework), threads)
    while True:
        try:
            command, *arguments = connection.recv()
        except EOFError:  # the parent is gone
            return
        if command == "quit":
            return
        try:
            answer = getattr(worker, command)(*arguments)
        except Exception:
            # The last line says what; the rest would name files of this machine.
            lines = traceback.format_exc().strip().splitlines()
            print("\n".join(lines), file=sys.stderr)
            answer = {"error": lines[-1][:300]}
        connection.send(answer)


class Worker:
    """Builds steps, and times them."""

    def __init__(self, module: Any, threads: int):
        self.module = module
        module.set_threads(threads)
        self.runners: dict[tuple[str, str], Any] = {}
        self.base = resident()

    def variants(self, model: str, method: str, terms: str) -> list[str]:
        return self.module.variants(model, method, terms)

    def probe(self, *key_and_problem: Any) -> dict[str, Any]:
        """Compiles a step, takes the first ones and looks at time and memory."""
        model, size, num_terms, method, variant, terms = key_and_problem
        runner = self.module.Runner(model, size, num_terms, method, variant, terms)
        self.runners[method, variant] = runner
        runner.start()
        reset_peak()
        # Two steps at least: the second one finds the state that the first one made.
        losses = [runner.step()]
        begin = time.perf_counter()
        losses.append(runner.step())
        times = [time.perf_counter() - begin]
        if times[0] < SLOW:
            times = timed(runner, 1)
        while sum(times) < 0.2 and len(times) < 10:
            times += timed(runner, 1)
        result = {
            "compile_seconds": runner.compile_seconds,
            "seconds": statistics.median(times),
            "losses": [[float(x) for x in row] for row in losses],
            "peak_mb": (peak() - self.base) / MB,
            "program_mb": {k: v / MB for k, v in runner.program_memory().items()},
        }
        self.stop(method, variant)
        return result

    def start(self, method: str, variant: str) -> None:
        self.runners[method, variant].start()

    def time(self, method: str, variant: str, steps: int) -> list[float]:
        runner = self.runners[method, variant]
        if steps > 1:  # fills the caches that the other process has emptied
            runner.step()
        return timed(runner, steps)

    def stop(self, method: str, variant: str) -> None:
        self.runners[method, variant].stop()
        gc.collect()


def timed(runner: Any, steps: int) -> list[float]:
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        runner.step()
        times.append(time.perf_counter() - begin)
    return times


def versions() -> dict[str, str]:
    """Versions of what takes part, without importing it."""
    names = ("jax", "jaxlib", "optax", "torch", "torchjd", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def resident() -> int:
    """Bytes of memory in use."""
    return _status("VmRSS") or peak()


def peak() -> int:
    """The most bytes in use since the last :func:`reset_peak`, where one is known."""
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _status("VmHWM") or most


def reset_peak() -> None:
    """Linux only; elsewhere the peak is that of the process so far."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    return 0
