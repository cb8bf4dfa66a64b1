"""The digits example, and the code in the README, do what they say."""

import importlib
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import multiterm_optax as mt
from tests import _methods

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def digits():
    """The example as a module; its neighbours are found as when it is a script."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import digits

        yield digits
    finally:
        sys.path.remove(str(ROOT / "examples"))


def save_npz(path, size, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (60, size, size), dtype=np.uint8),
        "y_train": np.arange(60, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (30, size, size), dtype=np.uint8),
        "y_test": np.arange(30, dtype=np.uint8) % 10,
    }
    arrays.update(changes)
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return path


def check_rows(rows, methods):
    assert [row["method"] for row in rows] == list(methods)
    for row in rows:
        for column in ("accuracy", "worst class", "class 0"):
            mean, spread = row[column]
            assert 0 <= mean <= 100, (row["method"], column)
            assert np.isfinite(spread)
        assert row["worst class"][0] <= row["accuracy"][0] <= 100
        assert 0 < row["seconds"][0] < np.inf


DEAR = {"AdaTask", "balanced"}


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_short_run(digits, tmp_path, monkeypatch, capsys):
    # The others, whose programs are the dearest, run with the longer tests.
    for module, table in (("digits", "METHODS"), ("digits_report", "STYLES")):
        table = getattr(sys.modules[module], table)
        for name in DEAR:
            monkeypatch.delitem(table, name)
    out = tmp_path / "figure.png"
    rows, best_rows = digits.main(["--short", "--out", str(out)])
    check_rows(rows, digits.METHODS)
    check_rows(best_rows, digits.METHODS)
    assert is_png(out)
    assert {row["lr"] for row in rows} == {1e-3}
    assert {row["lr"] for row in best_rows} <= {1e-3, 1e-2}
    # 60 steps are enough to see what the weights do, and that MTAdam undoes it.
    accuracy = {row["method"]: row["accuracy"][0] for row in rows}
    light = {row["method"]: row["class 0"][0] for row in rows}
    assert light["Adam, weighted sum"] < 10
    assert light["MTAdam"] > 80
    assert accuracy["MTAdam"] > accuracy["Adam, weighted sum"] + 10
    assert accuracy["Adam, correct weights"] > accuracy["Adam, weighted sum"] + 10
    printed = capsys.readouterr().out
    assert all(name in printed for name in digits.METHODS)
    assert str(out.name) in printed.replace("\n", "")


def test_seeds_change_everything_and_methods_share_it(digits):
    images = digits.load_images()
    one, same, other = (digits.make_problem(images, s, 20, 32) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.rows, same.rows)
    np.testing.assert_array_equal(one.class_weights, same.class_weights)
    assert not np.array_equal(one.rows, other.rows)
    assert not np.array_equal(one.class_weights, other.class_weights)
    assert one.class_weights[0] == 1
    assert np.all((one.class_weights >= 1) & (one.class_weights <= 1000))


def test_no_image_is_in_two_splits(digits):
    # An image is told apart by a number of its own in its corner.
    count = 100
    x = np.zeros((count, 8, 8), np.float32)
    x[:, 0, 0] = np.arange(count)
    problem = digits.make_problem((x, np.arange(count) % 10, None, None), 0, 60, 4)
    train = {int(i) for i in np.asarray(problem.train[0])[problem.rows][..., 0, 0].flat}
    val = {int(i) for i in problem.val[0][:, 0, 0]}
    test = {int(i) for i in problem.test[0][:, 0, 0]}
    assert (len(train), len(val), len(test)) == (60, 20, 20)
    assert len(train | val | test) == count


@pytest.mark.parametrize("model", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_class_losses_are_weighted_means_and_a_missing_class_has_no_gradient(
    digits, model
):
    network = digits.NETWORKS[model]
    params = jax.jit(digits.init_params, static_argnums=(0, 1, 2))(0, (8, 8), model)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(30, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 9, 30)  # class 9 is missing
    class_weights = np.geomspace(1, 1000, 10).astype(np.float32)

    @jax.jit
    def evaluate(*args):
        losses_fn = partial(digits.class_losses, network=network)
        return network(args[0], images), mt.value_and_term_grads(losses_fn)(*args)

    found = evaluate(params, (images, labels), class_weights)
    logits, (losses, grads) = jax.tree.map(np.asarray, found)
    logits = logits.astype(np.float64)
    errors = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(30), labels]
    expected = [class_weights[k] * errors[labels == k].mean() for k in range(9)]
    np.testing.assert_allclose(losses[:9], expected, rtol=2e-5)
    assert losses[9] == 0
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.isfinite(leaf))
        np.testing.assert_array_equal(leaf[9], np.zeros_like(leaf[9]))
        assert all(np.any(leaf[k] != 0) for k in range(9))


def test_steps_without_some_classes_stay_finite(digits):
    method, network = digits.METHODS["MTAdam"], digits.NETWORKS["mlp"]
    before = params = digits.init_params(0, (8, 8), "mlp")
    state = method.optimizer(1e-3).init(params)
    images = np.random.default_rng(0).uniform(size=(4, 8, 8)).astype(np.float32)
    step = jax.jit(partial(digits.train_step, method=method, network=network))
    for labels in ([1, 1, 2, 2], [3, 3, 3, 3], [0, 1, 2, 3]):
        batch = (images, np.array(labels))
        params, state = step(params, state, batch, np.ones(10), 1e-3)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True):
        assert np.all(np.isfinite(new))
        assert np.any(np.asarray(old) != np.asarray(new))


@pytest.mark.parametrize("name", sorted(DEAR))
def test_steps_of_the_dearest_methods_can_be_traced(digits, name):
    method, network = digits.METHODS[name], digits.NETWORKS["mlp"]

    def step():
        params = digits.init_params(0, (8, 8), "mlp")
        state = method.optimizer(1e-3).init(params)
        batch = np.zeros((4, 8, 8), np.float32), np.arange(4)
        args = (params, state, batch, np.ones(10), 1e-3)
        return args[:2], digits.train_step(*args, method=method, network=network)

    before, after = jax.eval_shape(step)
    assert after == before


@pytest.mark.parametrize(("model", "size"), [("mlp", 7), ("cnn", 9)])
@pytest.mark.slow
def test_run_on_an_npz_file(digits, tmp_path, model, size):
    data, out = save_npz(tmp_path / "tiny.npz", size), tmp_path / "figure.png"
    rows, _ = digits.main(
        f"--data {data} --model {model} --steps 2 --batch 8 --lrs --out {out}".split()
    )
    check_rows(rows, digits.METHODS)
    assert is_png(out)


@pytest.mark.parametrize("size", [8, 9, 28])
def test_the_cnn_takes_images_of_any_size(digits, size):
    def logits():
        params = digits.init_params(0, (size, size), "cnn")
        return digits.NETWORKS["cnn"](params, np.zeros((5, size, size), np.float32))

    assert jax.eval_shape(logits).shape == (5, 10)


def test_npz_images_are_scaled_and_kept_apart(digits, tmp_path):
    path = save_npz(tmp_path / "tiny.npz", 8)
    x_train, y_train, x_test, y_test = digits.load_images(path)
    with np.load(path) as archive:
        np.testing.assert_allclose(
            x_train * archive["x_train"].max(), archive["x_train"], rtol=1e-6
        )
        np.testing.assert_array_equal(y_train, archive["y_train"])
        np.testing.assert_array_equal(y_test, archive["y_test"])
    assert x_test.shape == (30, 8, 8)
    assert x_train.dtype == x_test.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_test": None}, ["x_test", "found", "x_train"]),
        ({"x_train": np.zeros((60, 64))}, ["x_train", "height, width", "(60, 64)"]),
        ({"y_test": np.zeros(7, int)}, ["y_test", "(30, 8, 8)", "(7,)"]),
        ({"y_train": np.full(60, 10)}, ["y_train", "0 to 9", "10"]),
        ({"y_train": np.zeros(60)}, ["y_train", "whole numbers", "float64"]),
        ({"x_test": np.zeros((30, 9, 9))}, ["one size", "(8, 8)", "(9, 9)"]),
        ({"x_train": np.array([{}] * 60)}, ["plain arrays"]),
    ],
)
def test_a_wrong_npz_layout_is_refused(digits, tmp_path, changes, words):
    path = save_npz(tmp_path / "wrong.npz", 8, **changes)
    with pytest.raises(SystemExit) as refusal:
        digits.load_images(path)
    for word in ["--data", "expected", "found", "wrong.npz", *words]:
        assert word in str(refusal.value)


def test_a_file_that_is_missing_or_no_archive_is_refused(digits, tmp_path):
    with pytest.raises(SystemExit, match=r"--data: expected .* found no file .*nope"):
        digits.main(["--data", str(tmp_path / "nope.npz")])
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    with pytest.raises(SystemExit, match=r"expected an .npz file of plain"):
        digits.load_images(text)
    cut = save_npz(tmp_path / "cut.npz", 8)
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(SystemExit, match=r"expected an .npz file of plain"):
        digits.load_images(cut)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(SystemExit, match=r"expected the arrays .* found none"):
        digits.load_images(tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--lr", "-1"], "--lr"),
        (["--out", "no/such/folder/a.png"], "--out"),
        (["--model", "transformer"], "--model"),
    ],
)
def test_wrong_arguments_are_refused_before_training(digits, arguments, word, capsys):
    with pytest.raises(SystemExit):
        digits.main(arguments)
    assert word in capsys.readouterr().err


@pytest.mark.slow
def test_every_example_a_term_in_short(digits, tmp_path, monkeypatch, capsys):
    import instance_wise  # beside the digits

    with_sgd = {k: v for k, v in instance_wise.METHODS.items() if "SGD" in k}
    monkeypatch.setattr(instance_wise, "METHODS", with_sgd)
    out = tmp_path / "figure.png"
    curves, best = instance_wise.main(["--short", "--out", str(out)])
    assert is_png(out)
    assert "easiest" in capsys.readouterr().out
    assert best == dict.fromkeys(with_sgd, 0.3)
    mean, upgrad = (curves[method, 0.3] for method in with_sgd)
    assert mean.shape == upgrad.shape == (1, 3, 5)
    np.testing.assert_array_equal(mean[:, 0], upgrad[:, 0])  # the same start
    for curve in (mean, upgrad):
        assert np.all(np.isfinite(curve))
        assert np.all(np.diff(curve[..., 0]) < 0)
        assert np.all(curve[..., 2] < curve[..., 0])
        assert np.all(curve[..., 0] < curve[..., 1])
    # Six steps are enough to see what UPGrad is for.
    assert np.all(upgrad[:, 1:, 3] < 5)
    assert np.all(mean[:, 1:, 3] > 20)


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_code_does_what_its_table_says(capsys):
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", readme(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(capsys.readouterr().out.splitlines()) == 5
    losses_fn, x = namespace["losses_fn"], namespace["x"]
    tx = optax.adam(1e-2)

    @jax.jit
    def with_plain_sums():
        """The losses before and after Adam's steps on their sum."""

        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: sum(losses_fn(p, x).values()))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        trunk = jax.random.normal(namespace["keys"][1], (4, 16))
        start = {"trunk": trunk, "heads": jax.numpy.zeros((16, 2))}
        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=1001)
        return losses_fn(start, x), losses_fn(params, x)

    before, sums = with_plain_sums()
    table = re.findall(r"^\| .* \| ([\d.,]+) \| ([\d.,]+) \|$", readme(), re.MULTILINE)
    printed = [[float(n.replace(",", "")) for n in row] for row in table]
    found = [list(row.values()) for row in (before, sums, namespace["losses"])]
    np.testing.assert_allclose(printed, found, rtol=0.05)


def test_the_picture_of_a_conflict_shows_one(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    cone = importlib.import_module("cone")
    along = [cone.GRADIENTS @ cone.direction(w) for w in (mt.equal(), mt.upgrad())]
    assert along[0].min() < 0
    assert along[1].min() > 0


def test_readme_links_exist():
    text = readme()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    links += re.findall(r'src="([^"]+)"', text)
    local = [link for link in links if "://" not in link]
    assert local
    for link in local:
        assert (ROOT / link).exists(), link


def test_readme_names_what_exists_and_every_weighting():
    section = readme().split("## Methods")[1].split("## More")[0]
    names = set(re.findall(r"`(\w+)`", section))
    for name in names:
        assert callable(getattr(mt, name)), name
    assert _methods.exported().keys() <= names


def scripts():
    found = sorted((ROOT / "examples").rglob("*.py"))
    return [path for path in found if "__main__" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_help_says_how_to_use_it_and_does_no_more(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)
    # Its neighbours have the names of other scripts' neighbours.
    neighbours = {other.stem for other in path.parent.glob("*.py")}
    others = {name: sys.modules.pop(name, None) for name in neighbours}
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
    finally:
        for name, module in others.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
    assert not end.value.code
    printed = capsys.readouterr()
    assert printed.out.startswith("usage:")
    assert not printed.err
