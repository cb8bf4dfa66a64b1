"""The benchmarks' own parts: statistics, tables, problems, and both sides' steps."""

import importlib
import itertools
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest

import multiterm_optax as mt

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def load():
    """Imports a module of the folder; its neighbours are found as when it is run."""
    sys.path.insert(0, str(FOLDER))

    def load(name):
        module = importlib.import_module(name)
        if name == "theirs":  # threads that wait for a busy core take long here
            module.set_threads(1)
        return module

    try:
        yield load
    finally:
        sys.path.remove(str(FOLDER))


def test_without_pytorch_the_run_says_what_to_install(load, monkeypatch, tmp_path):
    run = load("run")
    monkeypatch.setattr(run, "is_installed", lambda name: name != "torch")
    with pytest.raises(SystemExit, match=r"^torch: not .*'\.\[benchmarks\]'"):
        run.main(["--short", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# --- statistics --------------------------------------------------------------------


def test_quartiles_are_numpys(load):
    values = np.random.default_rng(0).exponential(size=17).tolist()
    expected = np.percentile(values, [25, 50, 75])
    np.testing.assert_allclose(load("stats").quartiles(values), expected)
    assert load("stats").quartiles([3.0]) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize("n", [1, 3, 5, 7, 9])
def test_interval_covers_the_median_as_often_as_it_says(load, n):
    low, high, coverage = load("stats").median_interval(range(n))
    # Each value lies below the median with probability 1/2: count all the cases in
    # which `low` does and `high` does not.
    inside = sum(
        sum(below) > low and sum(below) <= high
        for below in itertools.product((0, 1), repeat=n)
    )
    assert coverage == pytest.approx(inside / 2**n)
    # The whole range where even that is below 90%, else the narrowest that is not.
    assert (coverage >= 0.9) == (n >= 5)
    assert (low, high) == ((1, 7) if n == 9 else (0, n - 1))


def test_ratio_ignores_drift_that_meets_both(load):
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]
    theirs = [[d, 1.1 * d, 1.2 * d] for d in drift]
    ours = [[0.5 * seconds for seconds in turn] for turn in theirs]
    found = load("stats").ratio(ours, theirs)
    for key in ("ratio", "low", "high"):
        assert found[key] == pytest.approx(0.5)


# --- tables and plot ---------------------------------------------------------------


def fake_results(case, ours=0.25, theirs=1.0):
    def entry(side, variant, seconds, **more):
        return {
            "side": side,
            "method": case.method,
            "variant": variant,
            "seconds": seconds,
            "compile_seconds": 2.0,
            "peak_mb": 100.0,
            "program_mb": {"temporaries": 7.0} if side == "ours" else {},
            "losses": [[1.0], [1.0]],
            "rounds": [[seconds, seconds]] * 5,
            **more,
        }

    record = case._asdict() | {
        "size": case.size._asdict(),
        "extras": ["outside"],
        "losses_apart": [1e-6, 1e-5],
        "entries": [
            entry("ours", "slow way", 10 * ours),
            entry("ours", "fast way", ours),
            entry("theirs", "their way", theirs),
            entry("theirs", "outside", theirs / 100),
            {
                "side": "theirs",
                "method": case.method,
                "variant": "failed",
                "error": "no memory",
            },
        ],
    }
    names = ("jax", "optax", "torch", "torchjd", "python")
    machine = dict.fromkeys(names, "1.0")
    machine |= {"cpu": "a CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux"}
    return {
        "machine": machine,
        "threads": 2,
        "load": [1.0],
        "cases": {case.name: record},
    }


def test_goals_stand_on_screen_and_not_in_the_report(load):
    report = load("report")
    case = load("cases").all_cases()[0]._replace(goal=0.5)
    met, missed = fake_results(case), fake_results(case, ours=0.75)
    (row,) = map(report.row, met["cases"].values())
    assert "0.25 (0.25 to 0.25)" in row
    assert report.goals(met) == ["≤ 0.5: met"]
    assert report.goals(missed) == ["≤ 0.5: not met"]
    on_screen = report.notes(missed, short=False)
    assert "Goals for multiterm / PyTorch met: 0 of 1." in on_screen
    text = report.markdown(missed)
    assert text.count("\n| UPGrad ") == 1
    # Not the variant outside the comparison, which is told of by itself.
    assert (
        f"`fast way` and `their way`: {report.label(met['cases'][case.name])}" in text
    )
    assert "outside, which computes something else" in text
    assert "oal" not in text  # pages for users say what was measured
    assert "≤" not in text


def test_a_case_that_failed_stands_in_the_table_with_its_reason(load):
    report, case = load("report"), load("cases").all_cases()[0]
    results = fake_results(case)
    results["cases"][case.name] |= {"entries": [], "skipped": "theirs: no memory"}
    (row,) = map(report.row, results["cases"].values())
    assert row[-1] == "theirs: no memory"
    assert report.goals(results) == ["–"]


@pytest.mark.slow  # tests/test_plotting.py draws by default
def test_plot_is_drawn(load, tmp_path, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "savefig.dpi", 20)  # coarse, which is fast
    cases = load("cases")
    results = fake_results(cases.all_cases()[0])
    for case in cases.all_cases():
        if case.part == "d":
            results["cases"] |= fake_results(case)["cases"]
    load("drawing").draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_cases_have_names_of_their_own(load):
    cases = load("cases")
    for chosen in (cases.all_cases(), cases.short_cases()):
        assert len({case.name for case in chosen}) == len(chosen)


def test_only_fast_variants_are_timed_to_the_end(load):
    run, case = load("run"), load("cases").Case("a", "mlp", (), 2, "mtadam")
    case = case._replace(extras=("extra",))

    def probes(megabytes):
        seconds = {"fast": 1.0, "near": 1.2, "slow": 1.5, "extra": 9.0}
        found = {
            ("theirs", "mtadam", name): {"seconds": value, "peak_mb": megabytes}
            for name, value in seconds.items()
        }
        return found | {("theirs", "mtadam", "failed"): {"error": "no memory"}}

    def names(case, megabytes):
        return [key[2] for key in run.keep(case, probes(megabytes))]

    assert names(case, 10.0) == ["fast", "near", "extra"]
    assert names(case, 1e5) == ["fast", "extra"]  # the others have no room beside it
    everything = case._replace(keep_all=True)
    assert names(everything, 10.0) == ["fast", "near", "slow", "extra"]


def test_difference_of_losses_is_relative_to_the_largest(load):
    run, case = load("run"), load("cases").all_cases()[0]
    entries = [
        {"method": case.method, "losses": [[10.0, 1.0], [8.0, 1.0]]},
        {"method": case.method, "losses": [[10.0, 1.5], [8.0, 1.0]]},
        {"method": "adam", "losses": [[99.0, 99.0], [99.0, 99.0]]},
    ]
    assert run.losses_apart(case, entries) == pytest.approx([0.05, 0.0])


# --- steps -------------------------------------------------------------------------

TINY = {
    "mlp": {"batch": 4, "width": 8, "depth": 2},
    "transformer": {"batch": 2, "width": 8, "depth": 1, "length": 4, "heads": 4},
    "conv": {"batch": 7, "pixels": 8},
    "heads": {"batch": 4, "width": 8, "depth": 1},
}


def test_the_mlp_has_ten_million_parameters_in_about_fifty_leaves(load):
    params, _ = load("problems").make_problem("mlp", load("cases").MLP, 10)
    assert load("problems").count(params) == pytest.approx(10e6, rel=0.02)
    assert 45 <= len(params) <= 55


@pytest.mark.parametrize(
    ("model", "method", "terms"),
    [
        ("mlp", "adam", 3),
        pytest.param("mlp", "mtadam", 3, marks=pytest.mark.slow),
        pytest.param("mlp", "pcgrad", 3, marks=pytest.mark.slow),
        # Two terms, the fewest: these are the dearest to compile.
        pytest.param("mlp", "mgda", 2, marks=pytest.mark.slow),
        pytest.param("transformer", "mgda", 2, marks=pytest.mark.slow),
        pytest.param("conv", "mtadam", 2, marks=pytest.mark.slow),
    ],
)
def test_our_steps_lower_the_losses(load, model, method, terms):
    ours, size = load("ours"), load("problems").Size(**TINY[model])
    after = []
    for variant in ours.variants(model, method):
        runner = ours.Runner(model, size, terms, method, variant)
        runner.start()
        losses = [runner.step() for _ in range(4)]
        assert losses[0].shape == (terms,)
        assert np.isfinite(losses).all()
        assert losses[-1].sum() < losses[0].sum()
        after.append(losses)
    for other in after[1:]:  # ways to the same step
        np.testing.assert_allclose(after[0], other, rtol=2e-4)


@pytest.mark.slow
def test_gpu_script_runs_anywhere_and_says_where(load, tmp_path, capsys):
    results = load("gpu").main(["--short", "--out", str(tmp_path)])
    assert all(math.isfinite(row["ms"]) for row in results["updates"])
    steps = results["rows"] + results["heads"]
    assert all(math.isfinite(row["multiterm, ms"]) for row in steps)
    assert "not a GPU" in capsys.readouterr().out
    assert "Not judged here." in (tmp_path / "gpu-short.md").read_text()


@pytest.mark.slow
def test_rows_script_runs_anywhere(load, capsys):
    results = load("rows").main(["--short"])
    assert np.isfinite(results).all()
    assert "transformer" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ways"), [("grads", 3), ("gramian", 6)])
def test_passes_script_runs_anywhere(load, kind, ways):
    results = load("passes").main(["small", "experts", "--short", "--kind", kind])
    assert {model for model, _ in results} == {"small", "experts"}
    assert all(len(taken) == ways for taken in results.values())
    assert np.isfinite([list(taken.values()) for taken in results.values()]).all()


@pytest.mark.slow
def test_costs_script_runs_anywhere_and_counts(load, capsys):
    found = load("costs").main(["--short"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in found)
    plain, *others = found.values()
    assert (plain.operations, plain.kept) == (1, 0)
    for cost in others:
        assert cost.operations is None or 1 <= cost.operations < np.inf
        assert 0 < cost.temporaries < np.inf
    # mtadam keeps one first moment and a second moment for each of the two terms.
    assert found["K gradients, mtadam"].kept == pytest.approx(3, rel=0.05)
    assert found["K gradients, adatask_adam"].kept == pytest.approx(4, rel=0.05)


# --- the peers, where they are installed -------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("one_first_moment", [False, True])
def test_torch_mtadam_is_ours(load, batched, one_first_moment):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=3)}
    data = rng.normal(size=(5, 4))
    scales = np.array([1.0, 100.0, 0.01])

    def losses_of(params, rows, weights, tanh):
        hidden = tanh(rows @ params["a"] + params["b"])
        # The bias is silent for the first term: its anchor is another one.
        first = ((rows @ params["a"]) ** 2).mean() * weights[0]
        return [first, (hidden**2).mean() * weights[1], hidden.sum() * weights[2]]

    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    optimizer = load("torch_mtadam").MTAdam(
        theirs.values(),
        num_terms=3,
        lr=0.01,
        batched=batched,
        one_first_moment=one_first_moment,
    )
    with jax.enable_x64(True):
        ours = jax.tree.map(jnp.asarray, start)
        tx = mt.mtadam(0.01, num_terms=3)
        state = tx.init(ours)
        rows, weights = jnp.asarray(data), jnp.asarray(scales)

        @jax.jit
        def step(ours, state):
            grads = mt.term_grads(lambda p: losses_of(p, rows, weights, jnp.tanh))(ours)
            updates, state = tx.update(grads, state, ours)
            return optax.apply_updates(ours, updates), state

        for _ in range(20):
            found = losses_of(theirs, torch.tensor(data), scales, torch.tanh)
            optimizer.step(torch.stack(found))
            ours, state = step(ours, state)
    for name, value in ours.items():
        moved = np.abs(np.asarray(value) - start[name])
        assert moved.min() > 0.01  # more than a step
        np.testing.assert_allclose(theirs[name].detach(), value, rtol=1e-8)


@pytest.mark.parametrize(
    ("model", "method", "terms"),
    [
        ("mlp", "mtadam", "outputs"),
        ("mlp", "adam", "outputs"),
        ("transformer", "mgda", "outputs"),
        ("conv", "mtadam", "outputs"),
        ("transformer", "upgrad", "rows"),
        ("heads", "upgrad", "features"),
        ("heads", "upgrad", "trunk"),
    ],
)
def test_both_frameworks_take_the_same_steps(load, model, method, terms):
    pytest.importorskip("torchjd")
    size = load("problems").Size(**TINY[model])
    runs = {}
    for side in ("ours", "theirs"):
        module = load(side)
        for variant in module.variants(model, method, terms):
            runner = module.Runner(model, size, 2, method, variant, terms)
            runner.start()
            runs[side, variant] = [runner.step() for _ in range(3)]
    first = next(iter(runs.values()))
    for losses in runs.values():
        np.testing.assert_allclose(losses, first, rtol=1e-4)
