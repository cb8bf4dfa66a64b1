"""Pictures show the numbers they are given, on the axes they are given."""

import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest

from multiterm_optax import metrics, mgda, per_term, plotting, reweight, sum_terms
from tests._asserts import assert_message

CALLS = {
    "weights": lambda **kw: plotting.weights(np.ones((4, 3)), **kw),
    "dominance": lambda **kw: plotting.dominance(np.full((4, 3, 5), 0.2), **kw),
    "cosines": lambda **kw: plotting.cosines(np.eye(3), **kw),
    "pareto_front": lambda **kw: plotting.pareto_front(np.ones((4, 2)), **kw),
}
each_picture = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(autouse=True)
def plt():
    """Pyplot, which other files' workers need not import; no figure stays open."""
    mpl.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@each_picture
def test_draws_on_the_axes_it_is_given(plt, name):
    _, (left, right) = plt.subplots(1, 2)
    assert CALLS[name](ax=right) is right
    assert not left.has_data()
    assert right.has_data()


@each_picture
def test_makes_axes_of_its_own_and_leaves_others_alone(plt, name):
    _, other = plt.subplots()
    made = CALLS[name]()
    assert made is not other
    assert not other.has_data()
    made.get_figure().canvas.draw()


def test_every_picture_is_tested():
    public = {
        name
        for name, value in vars(plotting).items()
        if callable(value) and getattr(value, "__module__", "") == plotting.__name__
    }
    assert {name for name in public if not name.startswith("_")} == set(CALLS)


def test_weights_of_a_run():
    tx = optax.chain(reweight(mgda(), 2), sum_terms(), optax.sgd(0.1))
    params = jnp.array([1.0, -2.0])
    state, history = tx.init(params), []
    for _ in range(5):
        grads = jnp.stack([params - 1, 3 * params])
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(optax.tree.get(state, "weights"))
    ax = plotting.weights(jnp.stack(history), steps=range(1, 6))
    for term, line in enumerate(ax.get_lines()):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5])
        np.testing.assert_allclose(line.get_ydata(), np.array(history)[:, term])


def coloured(ax):
    """How many pixels of the drawn figure have the colour of a line."""
    ax.get_legend().set_visible(False)
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3] / 255
    lines = [mpl.colors.to_rgb(line.get_color()) for line in ax.get_lines()]
    return [int(np.isclose(pixels, c, atol=0.02).all(-1).sum()) for c in lines]


def test_four_lines_of_weights_differ_without_their_colours():
    lines = plotting.weights(np.ones((4, 8))).get_lines()
    assert len({line.get_linestyle() for line in lines[:4]}) == 4
    assert len({line.get_color() for line in lines}) == 8


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_weights_are_in_sight_on_either_scale(scale):
    history = np.stack([np.geomspace(1e-3, 500, 50), np.geomspace(5, 900, 50)], 1)
    ax = plotting.weights(history)
    assert ax.get_ylim()[0] == 0
    ax.set_yscale(scale)
    assert ax.get_ylim()[1] >= 900
    assert min(coloured(ax)) > 200
    if scale == "log":
        assert 0 < ax.get_ylim()[0] <= 1e-3


def test_no_picture_of_no_steps():
    assert plotting.weights(np.ones((0, 2))).get_lines()
    assert plotting.weights([[-2.0, 1.0], [1.0, 1.0]]).get_ylim()[0] < -2


def test_dominance_of_a_run():
    tx = optax.chain(
        per_term(optax.scale(1.0), 2), metrics.track_dominance(2), sum_terms()
    )
    params = np.zeros(4, np.float32)
    grads = np.array([[1, 1, 1, 0], [0, 0.1, 1, 1]], np.float32)

    @jax.jit
    def step(state, grads):
        _, state = tx.update(grads, state, params)
        return state, metrics.dominance_shares(metrics.dominance(state))

    state, shares = tx.init(params), []
    for _ in range(3):
        state, now = step(state, grads)
        shares.append(now)
    ax = plotting.dominance(np.stack(shares), term=0)
    heights = [np.ptp(area.get_paths()[0].vertices[:, 1]) for area in ax.collections]
    # One parameter is the other term's, one is shared, two are this term's.
    np.testing.assert_allclose(heights, [0.25, 0, 0.25, 0, 0.5], atol=1e-6)


def test_cosines_of_gradients():
    grads = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    cosines = jax.jit(metrics.cosines)(grads)
    ax = plotting.cosines(cosines, labels=["a", "b", "c"])
    rows = np.asarray(grads, np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    shown = np.array([float(text.get_text()) for text in ax.texts]).reshape(3, 3)
    np.testing.assert_allclose(shown, rows @ rows.T, atol=6e-3)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b", "c"]


def test_labels_are_the_names_of_the_losses():
    losses = {"pde": {"res": 1.0, "ics": 2.0}, "data": 0.5}
    names = ["data", "pde/ics", "pde/res"]
    ax = plotting.weights(np.ones((4, 3)), labels=losses)
    assert [line.get_label() for line in ax.get_lines()] == names
    ax = plotting.cosines(np.eye(3), labels=losses)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names
    shares = np.random.default_rng(0).dirichlet(np.ones(5), size=(4, 3))
    named = plotting.dominance(shares, term="pde/ics", labels=losses)
    placed = plotting.dominance(shares, term=1, labels=names)
    assert named.get_legend().get_title().get_text() == "moved by pde/ics"
    for one, other in zip(named.collections, placed.collections, strict=True):
        np.testing.assert_array_equal(
            one.get_paths()[0].vertices, other.get_paths()[0].vertices
        )
    ax = plotting.pareto_front(np.ones((4, 2)), labels={"y": 1.0, "x": 2.0})
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")


def test_many_terms_have_no_numbers():
    assert not plotting.cosines(np.eye(13)).texts


def test_pareto_front_against_every_pair():
    points = np.random.default_rng(0).normal(size=(30, 2))
    front = plotting.pareto_front(points).get_lines()[0].get_xydata()
    expected = [
        p for p in points if not any((q < p).all() for q in points if q is not p)
    ]
    np.testing.assert_allclose(front, sorted(map(tuple, expected)))


def test_runs_that_failed_are_left_out_of_the_front():
    points = [[np.nan, 0.0], [1.0, 1.0], [0.0, np.inf]]
    front = plotting.pareto_front(points).get_lines()[0].get_xydata()
    np.testing.assert_array_equal(front, [[1.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: plotting.weights(np.ones(3)), "history"),
        (lambda: plotting.weights(np.ones((3, 2)), labels=["one"]), "labels"),
        (lambda: plotting.weights(np.ones((3, 2)), labels="ab"), "labels"),
        (lambda: plotting.weights(np.ones((3, 2)), labels={"a": 1.0}), "labels"),
        (lambda: plotting.weights(np.ones((3, 2)), labels=np.ones(2)), "labels"),
        (lambda: plotting.weights(np.ones((3, 2)), steps=[1, 2]), "steps"),
        (lambda: plotting.dominance(np.ones((3, 2, 5)), term="one"), "term"),
        (lambda: plotting.dominance(np.ones((3, 2, 4))), "shares"),
        (lambda: plotting.dominance(np.ones((3, 2, 5)), term=2), "term"),
        (lambda: plotting.cosines(np.ones((3, 2))), "matrix"),
        (lambda: plotting.pareto_front(np.ones((3, 3))), "losses"),
    ],
)
def test_bad_input(own_errors, call, argument):
    with pytest.raises(ValueError, match="plotting") as error:
        call()
    assert_message(error, argument, "found")


def test_without_matplotlib(monkeypatch, own_errors):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="plotting"):
        plotting.cosines(np.eye(2))
