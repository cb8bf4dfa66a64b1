"""The comparison runs, leaves no method out, and computes what its page says."""

import ast
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

import multiterm_optax as mt
from multiterm_optax import optimizers, transforms, weightings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "comparison"
FILES = ("comparison.json", "comparison.md", "comparison.png")


def run(*options):
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, FOLDER / "run.py", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)


def load(name):
    """A module of the folder that imports none of its neighbours."""
    spec = importlib.util.spec_from_file_location(
        f"comparison_{name}", FOLDER / f"{name}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    found = run("--short", "--out", folder)
    assert found.returncode == 0, found.stderr
    return folder


@pytest.mark.slow  # eight programs to compile
def test_short_run_saves_its_files(short):
    saved = {path.name for path in short.iterdir()}
    assert saved == {*FILES, "digits.json", "adatask.json"}
    results = json.loads((short / "comparison.json").read_text())
    assert {len(found["methods"]) for found in results.values()} == {3}


@pytest.mark.slow
def test_what_was_run_is_not_run_again(short):
    before = (short / "digits.json").stat().st_mtime_ns
    found = run("--short", "--out", short, "--problems", "digits")
    assert found.returncode == 0, found.stderr
    assert (short / "digits.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed_in(short):
    found = run("--out", short, "--problems", "digits")
    assert found.returncode != 0
    assert "--out: expected results under" in found.stderr


@pytest.mark.slow
def test_tables_and_picture_are_drawn_again_from_the_results(short, tmp_path):
    found = run("--draw", short / "comparison.json", "--out", tmp_path)
    assert found.returncode == 0, found.stderr
    for name in FILES[:2]:
        assert (tmp_path / name).read_text() == (short / name).read_text()
    assert (tmp_path / "comparison.png").is_file()


@pytest.fixture(scope="module")
def problems():
    """The module, whose neighbours are found; the benchmarks have one of its name."""
    other = sys.modules.pop("problems", None)
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("problems")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("problems", None)
        if other is not None:
            sys.modules["problems"] = other


def test_no_problem_is_both_chosen_on_and_held_out(problems):
    counted = problems.CHOSEN_ON, problems.HELD_OUT, problems.FURTHER
    parts = *counted, problems.NOT_TERMS
    assert len(problems.CHOSEN_ON) == 7
    assert set(problems.PROBLEMS) == set().union(*counted)
    assert len(set().union(*parts)) == sum(len(part) for part in parts)


@pytest.mark.slow  # a program to compile for each
def test_each_held_out_problem_can_be_trained_and_scored(problems):
    held_out = problems.HELD_OUT | problems.FURTHER | problems.NOT_TERMS
    for name, make in held_out.items():
        problem = make(True)
        data = jax.tree.map(jnp.asarray, problem.make_data(0))
        params = problem.init_params(0)

        @jax.jit
        def evaluate(params, data, problem=problem):
            batch = problem.draw(jax.random.key(0), data["train"])
            losses, pull = jax.vjp(lambda p: problem.losses_fn(p, batch), params)
            grads = pull(jnp.ones_like(losses))
            return losses, grads, problem.score(params, data["test"])

        losses, grads, score = evaluate(params, data)
        assert losses.shape == (problem.num_terms,), name
        assert score.shape == (), name
        for leaf in jax.tree.leaves((losses, grads, score)):
            assert np.isfinite(leaf).all(), name
        norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(grads)]
        assert max(norms) > 0, name
        if problem.undo is not None:
            assert np.shape(problem.undo) == (problem.num_terms,), name


def makes_weights(function):
    return inspect.signature(function).return_annotation is mt.Weighting


def public_functions(module):
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def test_every_method_of_the_library_is_compared():
    tree = ast.parse((FOLDER / "methods.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "mt"
    }
    found = public_functions(weightings)
    methods = {name for name, value in found.items() if makes_weights(value)}
    methods |= set(public_functions(optimizers))
    methods |= {"balance_by_norm", "grad_drop", "one_at_a_time", "scale_by_max_adam"}
    # Of transforms those that are methods, and no means to make some.
    methods |= public_functions(transforms).keys() - {"per_term", "reweight"}
    assert {"mgda", "mtadam", "softadapt", "uncertainty"} <= methods
    # Weightings that need no arguments are found there as they are here.
    spec = importlib.util.spec_from_file_location("methods", FOLDER / "methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert methods <= used | module.METHODS.keys()


# --- the arithmetic of the report ---------------------------------------------------


def static(better, equal=(9.0, 11.0), pool=4):
    return {
        "equal": {"validation": [0.9] * 5, "test": list(equal)},
        "pool": pool,
        "better": [{"validation": v, "test": list(t)} for v, t in better],
    }


def best_of_draws(better, equal, pool, drawn):
    """The mean over every set of trials that can be drawn, one by one."""
    trials = [*better, *[(np.inf, equal)] * (pool - len(better))]
    best = [
        min(chosen, key=lambda trial: trial[0])[1]
        for chosen in itertools.combinations(trials, drawn)
    ]
    return np.mean(best, axis=0)


@pytest.mark.parametrize("drawn", [1, 2, 3, 4])
def test_static_scores_are_the_mean_over_all_draws(drawn):
    report = load("report")
    better = [(0.5, (3.0, 5.0)), (0.2, (4.0, 1.0)), (0.7, (8.0, 8.0))]
    expected, _ = report.static_scores(static(better), 5 + drawn)
    reference = best_of_draws(better, (9.0, 11.0), 4, drawn)
    np.testing.assert_allclose(expected, reference, rtol=1e-12)


@pytest.mark.parametrize("trials", [0, 4, 5])
def test_the_first_static_trials_are_equal_weights(trials):
    expected, spread = load("report").static_scores(static([(0.5, (3, 5))]), trials)
    assert expected.tolist() == [9, 11]
    assert spread == 1


def test_more_trials_than_the_pool_holds_are_the_whole_pool():
    report = load("report")
    found = static([(0.5, (3.0, 5.0))])
    many, _ = report.static_scores(found, 1000)
    assert many.tolist() == [3, 5]


def test_a_difference_counts_if_a_paired_t_test_says_so():
    """SciPy's own test, on either side of its 1 %."""
    verdict = load("report").verdict
    rng = np.random.default_rng(0)
    own, noise = rng.uniform(1, 2, 10), rng.normal(size=10)
    signs = set()
    for shift in np.linspace(-2, 2, 41):
        other = own + noise + shift
        found = scipy.stats.ttest_rel(own, other)
        expected = np.sign(found.statistic) if found.pvalue < 0.01 else 0
        assert verdict(own, other) == expected
        signs.add(int(expected))
    assert signs == {-1, 0, 1}
    assert verdict(own, own) == 0
    diverged = np.array([*own[:9], np.inf])
    assert verdict(diverged, own) == 1
    assert verdict(own, diverged) == -1


def test_the_interval_of_a_ratio_is_that_of_a_log_normal_one():
    ratio = load("report").ratio
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(100):
        own, other = np.exp(0.1 * rng.normal(size=(2, 20)))
        _, low, high = ratio(2 * own, other)
        inside.append(low < 2 < high)
    # The percentiles of drawn seeds are a little narrow: some 93 in place of 95 %.
    assert 0.87 < np.mean(inside) < 0.99
    middle, low, high = ratio(np.ones(5), 4 * np.ones(5))
    assert (middle, low, high) == (0.25, 0.25, 0.25)


def test_equal_scores_share_a_rank_and_failures_come_last():
    ranks = load("report").ranks
    assert ranks([3.0, 1.0, np.inf, 3.0, np.inf]).tolist() == [2.5, 1, 4.5, 2.5, 4.5]
