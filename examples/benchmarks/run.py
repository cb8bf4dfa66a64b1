"""Whole training steps, this library against PyTorch: measures, then reports.

    python examples/benchmarks/run.py            # all, some forty minutes
    python examples/benchmarks/run.py --short    # does everything run? about a minute

It needs the extra ``benchmarks``. Results are saved after every case: a run that was
cut off resumes where it stopped. README.md in this folder says what is measured, and
how.
"""

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import worker
from cases import Case, all_cases, short_cases

THREADS = 2


class Budget(NamedTuple):
    """How long things may take, in seconds."""

    turn: float  # of one entry in one round
    case: float  # of all rounds of a case
    rounds: tuple[int, int]  # fewest and most


FULL = Budget(turn=0.3, case=12.0, rounds=(5, 9))
SHORT = Budget(turn=0.01, case=0.5, rounds=(3, 5))
SLOWER = 1.25  # a variant that is slower than the fastest by this factor is dropped
ROOM = 4000  # MB; all but the fastest are dropped where they took more together


class Peer:
    """One framework's worker process, at the other end of a pipe."""

    def __init__(self, framework: str):
        context = multiprocessing.get_context("spawn")
        self.connection, end = context.Pipe()
        self.process = context.Process(
            target=worker.main, args=(end, framework, THREADS), daemon=True
        )
        self.process.start()
        end.close()
        self.framework = framework

    def ask(self, *request: Any, patience: float = 240.0) -> Any:
        try:
            self.connection.send(request)
            if self.connection.poll(patience):
                return self.connection.recv()
            problem = f"no answer within {patience:.0f} s"
        except (EOFError, OSError):
            problem = "the worker process died; was the memory enough?"
        return {"error": problem, "gone": True}

    def close(self) -> None:
        try:
            self.connection.send(("quit",))
            self.process.join(timeout=10)
        except OSError:
            pass
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def measure(case: Case, budget: Budget) -> dict[str, Any]:
    """Times one case in two fresh processes, turn by turn."""
    peers = {name: Peer(name) for name in ("ours", "theirs")}
    try:
        return _measure(case, budget, peers)
    finally:
        for peer in peers.values():
            peer.close()


def _measure(case: Case, budget: Budget, peers: dict[str, Peer]) -> dict[str, Any]:
    entries: dict[tuple[str, str, str], dict[str, Any]] = {}
    for side, peer in peers.items():
        methods = [case.method, *["adam"] * case.baseline]
        for method in methods:
            names = peer.ask("variants", case.model, method, case.terms)
            if isinstance(names, dict):
                return record(case, {}, skipped=f"{side}: {names['error']}")
            if not names:
                return record(case, {}, skipped=f"{side}: no {method}")
            if side == "theirs" and method == case.method:
                names = [*names, *case.extras]
            for name in names:
                entries[side, method, name] = {}
    waiting = list(entries)
    while waiting:
        key = side, method, name = waiting.pop(0)
        entries[key] = peers[side].ask(
            "probe", case.model, case.size, case.num_terms, method, name, case.terms
        )
        if entries[key].pop("gone", False):
            # What the process had built is gone with it.
            peers[side].close()
            peers[side] = Peer(side)
            done = [
                k for k in entries if k not in waiting and "error" not in entries[k]
            ]
            waiting += [k for k in done if k[0] == side]
    kept = keep(case, entries)
    for side in peers:
        if not any(key[0] == side and key[1] == case.method for key in kept):
            return record(case, entries, skipped=f"{side}: nothing ran")
    for key in kept:
        peers[key[0]].ask("start", *key[1:])
        if entries[key]["seconds"] < worker.SLOW:
            peers[key[0]].ask("time", *key[1:], 1)
    steps = {
        key: max(1, min(50, round(budget.turn / entries[key]["seconds"])))
        for key in kept
    }
    cost = sum((n + (n > 1)) * entries[key]["seconds"] for key, n in steps.items())
    least, most = budget.rounds
    allowed = budget.case / (3 if case.part == "d" else 1)
    if max(entries[key]["seconds"] for key in kept) > worker.SLOW:
        least = min(least, 3)
    rounds = max(least, min(most, int(allowed / cost)))
    for key in kept:
        entries[key]["rounds"] = []
    for i in range(rounds):
        for key in kept if i % 2 == 0 else kept[::-1]:
            time.sleep(0.02)  # threads of the last turn that still spin go to sleep
            times = peers[key[0]].ask("time", *key[1:], steps[key])
            if isinstance(times, dict):
                return record(case, entries, skipped=f"{key[0]}: {times['error']}")
            entries[key]["rounds"].append(times)
    return record(case, entries)


def keep(case: Case, entries: dict) -> list[tuple[str, str, str]]:
    """The variants to be timed: the fastest of each side, and whatever comes close."""
    kept = []
    for side, method in dict.fromkeys(key[:2] for key in entries):
        own = {
            key: entry["seconds"]
            for key, entry in entries.items()
            if key[:2] == (side, method) and "error" not in entry
        }
        memory = sum(entries[key]["peak_mb"] for key in own)
        slower = SLOWER if memory < ROOM else 1.0
        compared = [s for key, s in own.items() if key[2] not in case.extras]
        best = min(compared, default=math.inf)
        for key, seconds in own.items():
            asked_for = case.keep_all or key[2] in case.extras
            if asked_for or seconds <= slower * best:
                kept.append(key)
    return kept


def record(case: Case, entries: dict, skipped: str | None = None) -> dict[str, Any]:
    """What is saved of a case; plain JSON."""
    listed = [
        {"side": side, "method": method, "variant": variant, **entry}
        for (side, method, variant), entry in entries.items()
    ]
    result = {
        **case._asdict(),
        "size": case.size._asdict(),
        "entries": listed,
        "losses_apart": losses_apart(case, listed),
    }
    return result | ({"skipped": skipped} if skipped else {})


def losses_apart(case: Case, listed: list[dict]) -> list[float]:
    """Largest relative difference of all losses, before and after the first step."""
    runs = [
        entry["losses"]
        for entry in listed
        if entry["method"] == case.method
        and "losses" in entry
        and entry.get("variant") not in case.extras
    ]
    apart = []
    for losses in zip(*runs, strict=True):
        scale = max(abs(x) for x in losses[0])
        columns = zip(*losses, strict=True)
        apart.append(max(max(c) - min(c) for c in columns) / scale)
    return apart


def machine() -> dict[str, Any]:
    """In general words: no names of machines, people or folders."""
    model, memory = platform.machine(), 0.0
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = pages / 2**30
    except (OSError, ValueError):
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        **worker.versions(),
    }


def missing(cases: list[Case], results: dict[str, Any]) -> list[str]:
    """Cases without a result, those that failed included: they are tried again."""
    done = {n for n, case in results["cases"].items() if "skipped" not in case}
    return [case.name for case in cases if case.name not in done]


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="tiny models")
    parser.add_argument("--out", type=Path, default=Path("benchmarks-results"))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="start no case later"
    )
    parser.add_argument("--fresh", action="store_true", help="forget saved results")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    lacking = [name for name in ("torch", "torchjd") if not is_installed(name)]
    if lacking and not args.report:
        sys.exit(
            f"{' and '.join(lacking)}: not installed, and half of what is measured; "
            "the extra brings it: pip install -e '.[benchmarks]'"
        )
    os.environ.update(
        JAX_PLATFORMS="cpu",
        OMP_NUM_THREADS=str(THREADS),
        MKL_NUM_THREADS=str(THREADS),
    )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / ("short.json" if args.short else "results.json")
    results: dict[str, Any] = {"machine": machine(), "threads": THREADS}
    results |= {"load": [], "cases": {}}
    if path.exists() and not args.fresh:
        saved = json.loads(path.read_text())
        if not args.report and saved["machine"] != results["machine"]:
            sys.exit(f"{path} is of another machine or other versions; give --fresh.")
        results = saved
    import multiterm_optax as mt

    cases = short_cases() if args.short else all_cases()
    cases = [case for case in cases if hasattr(mt, case.method)]
    to_run = missing(cases, results)
    left = [c for c in cases if c.name in to_run and args.only in c.name]
    begin = time.monotonic()
    while left and not args.report:
        if time.monotonic() - begin > 60 * args.minutes:
            break
        case = left.pop(0)
        print(f"{case.name} ...", end=" ", flush=True)
        start = time.monotonic()
        results["load"].append(os.getloadavg()[0])
        results["cases"][case.name] = measure(case, SHORT if args.short else FULL)
        print(f"{time.monotonic() - start:.0f} s", flush=True)
        results["not_run"] = missing(cases, results)
        path.write_text(json.dumps(results, indent=1))

    import report

    report.write(results, args.out, short=args.short)
    return results


if __name__ == "__main__":
    main()
