"""The promises of every method that reads the gramian, at every scale and shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiterm_optax import reweight as reweight_by
from tests import _methods
from tests.weightings import _jacobians, _properties, _steps

PARAMETERS = 24
SCALES = [1e-15, 1e-10, 1.0, 1e5, 1e10, 1e15]
EXTREMES = {1e-15, 1e15}
each_scale = pytest.mark.parametrize(
    "scale",
    [pytest.param(s, marks=[] if s in EXTREMES else pytest.mark.slow) for s in SCALES],
)
KINDS = _jacobians.WELL_POSED + _jacobians.DEGENERATE

FOUND = {name: one for name, one in _methods.methods().items() if one.reads}


def promising(promise):
    return [n for n, one in FOUND.items() if getattr(one, promise) is not False]


def each(names):
    return pytest.mark.parametrize("name", names)


def deep(names):
    """Names and numbers of terms: two and 64, and variants of a method, are slow.

    One term alone has a test of its own, in test_contract.py.
    """
    own = _methods.factories()
    return pytest.mark.parametrize(
        ("name", "terms"),
        [
            pytest.param(
                name,
                terms,
                marks=[] if terms == 3 and name in own else pytest.mark.slow,
            )
            for name in names
            for terms in (2, 3, 64)
        ],
    )


every_method = each(FOUND)


@pytest.fixture(autouse=True)
def as_users_have_them(request):
    """The slow tests run the programs of whose roundings the bounds are made."""
    if request.node.get_closest_marker("slow"):
        request.getfixturevalue("full_compilation")


@functools.cache
def compiled(name, x64):
    del x64  # a trace of its own for each precision

    @jax.jit
    def weigh(rows):
        num_terms = rows.shape[0]
        tx = reweight_by(FOUND[name].make(num_terms), num_terms)
        losses = jnp.ones(num_terms, rows.dtype)
        _, state = tx.update(rows, tx.init(rows[0]), losses=losses)
        return state.weights

    return weigh


def shared(name, rows):
    """The same weights, from the program that other shared tests run, too."""
    one_step = np.ones((1, 1, len(rows)))
    weights, _ = _steps.run_batch(name, rows @ rows.T, one_step)
    return weights[0, 0]


@functools.cache
def weights_of(name, x64, quick, shape, dtype, entries):
    """Many promises are about the same gradients: their weights are found once."""
    rows = np.frombuffer(entries, dtype).reshape(shape)
    if quick and not x64 and len(rows) == _steps.TERMS:
        return shared(name, rows)
    return np.asarray(compiled(name, x64)(rows))


def method(name):
    x64 = bool(jax.config.jax_enable_x64)
    quick = jax.config.read("jax_disable_most_optimizations")
    return lambda rows: weights_of(
        name, x64, quick, rows.shape, rows.dtype.str, rows.tobytes()
    )


def jacobians(terms, dtype=np.float32, promised=True):
    """Gradients of every kind; of few and mild ones where a method promises no more."""
    rng = np.random.default_rng(0)
    size = max(PARAMETERS, terms)
    kinds = [k for k in KINDS if k is not _jacobians.more_terms_than_parameters]
    if promised is None:
        mild = [_jacobians.generic, _jacobians.agreeing, _jacobians.scales_apart]
        kinds = mild if terms <= 3 else []
    return [kind(rng, terms, size).astype(dtype) for kind in kinds]


@deep(FOUND)
@each_scale
def test_finite(name, terms, scale):
    for rows in jacobians(terms):
        _properties.assert_finite(method(name), rows * np.float32(scale))


@deep(FOUND)
def test_zero_gradients(name, terms):
    _properties.assert_zero_for_zero(method(name), jacobians(terms)[0])


@deep(FOUND)
def test_some_gradients_zero(name, terms):
    for rows in jacobians(terms):
        for term in range(min(terms, 3)):
            some = rows.copy()
            some[term] = 0
            _properties.assert_finite(method(name), some)


@pytest.mark.slow  # test_contract.py has it for the methods' own names
@every_method
def test_single_gradient(name):
    _properties.assert_single_gradient_untouched(method(name), jacobians(1)[0])


@deep(promising("simplex"))
def test_simplex(name, terms):
    for rows in jacobians(terms):
        _properties.assert_weights_sum_to_one(method(name), rows)


@deep(promising("permutes"))
def test_permutation(name, terms):
    order = np.random.default_rng(1).permutation(terms)
    for rows in jacobians(terms, promised=FOUND[name].permutes):
        _properties.assert_permutes(method(name), rows, order)


@deep(promising("invariant"))
@each_scale
def test_scale(name, terms, scale):
    for rows in jacobians(terms, promised=FOUND[name].invariant):
        _properties.assert_invariant_to_scale(method(name), rows, scale)


@deep(promising("agrees"))
@each_scale
def test_no_conflict(name, terms, scale):
    for rows in jacobians(terms):
        _properties.assert_conflicts_with_no_term(
            method(name), rows * np.float32(scale)
        )


@deep(promising("shortest"))
def test_min_norm(name, terms):
    for rows in jacobians(terms):
        _properties.assert_min_norm(method(name), rows)


@pytest.mark.slow  # test_contract.py and test_absent.py run in float64
@pytest.mark.usefixtures("x64")
class TestDoublePrecision:
    """The same promises in float64, and to its digits."""

    @every_method
    @each_scale
    def test_finite(self, name, scale):
        for rows in jacobians(3, np.float64):
            _properties.assert_finite(method(name), rows * scale)

    @each(promising("permutes"))
    def test_permutation(self, name):
        for rows in jacobians(3, np.float64, FOUND[name].permutes):
            _properties.assert_permutes(method(name), rows, np.array([2, 0, 1]))

    @each(promising("invariant"))
    @each_scale
    def test_scale(self, name, scale):
        for rows in jacobians(3, np.float64, FOUND[name].invariant):
            _properties.assert_invariant_to_scale(method(name), rows, scale)

    @each(promising("agrees"))
    def test_no_conflict(self, name):
        for rows in jacobians(3, np.float64):
            _properties.assert_conflicts_with_no_term(method(name), rows)

    @each(promising("shortest"))
    def test_min_norm(self, name):
        for rows in jacobians(3, np.float64):
            _properties.assert_min_norm(method(name), rows)


@pytest.mark.parametrize("name", ["mgda l2", "mgda loss+"])
@pytest.mark.parametrize("kind", [_jacobians.generic, _jacobians.agreeing])
def test_normalized_mgda_where_its_weights_are_unique(name, kind):
    rows = kind(np.random.default_rng(0), 3, PARAMETERS).astype(np.float32)
    _properties.assert_permutes(method(name), rows, np.array([2, 0, 1]))
    for scale in SCALES:
        _properties.assert_invariant_to_scale(method(name), rows, scale)


def test_two_terms_of_pcgrad_do_not_depend_on_their_order():
    """With two terms there is one other term to project off, and no draw."""
    for rows in jacobians(2):
        _properties.assert_permutes(method("pcgrad"), rows, np.array([1, 0]))


# --- drawn Jacobians ---------------------------------------------------------

entries = st.sampled_from([0.0, 1.0, -1.0, 0.5, -3.0, 1e-4, 1e3]) | st.floats(
    -10, 10, width=32
)


@st.composite
def drawn_jacobians(draw):
    """Three gradients in five dimensions, some of them made of the others.

    They stand in the first of all columns, so that one program serves all tests.
    """
    rows = np.array(draw(st.lists(entries, min_size=15, max_size=15))).reshape(3, 5)
    relation = draw(st.sampled_from(["none", "equal", "opposed", "multiple", "zero"]))
    factor = {"equal": 1, "opposed": -1, "multiple": 2.5, "zero": 0}.get(relation)
    if factor is not None:
        rows[2] = factor * rows[0]
    return np.pad(rows, ((0, 0), (0, PARAMETERS - 5))).astype(np.float32)


@each([n for n in FOUND if n in _methods.factories()])
@given(rows=drawn_jacobians(), scale=st.sampled_from(SCALES))
def test_drawn_jacobians_are_finite(name, rows, scale):
    _properties.assert_finite(method(name), rows * np.float32(scale))


@each(promising("shortest"))
@given(rows=drawn_jacobians())
def test_drawn_jacobians_meet_the_optimality_conditions(name, rows):
    _properties.assert_conflicts_with_no_term(method(name), rows)
    found = _properties.direction(method(name)(rows), rows)
    slack = rows.astype(np.float64) @ found - found @ found
    size = _properties.longest(rows)
    assert slack.min() >= -_properties.tolerance(rows) * size * size
