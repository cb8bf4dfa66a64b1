"""The promises of every method that reads the gramian, at every scale and shape."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multiterm_optax
from multiterm_optax import (
    Weighting,
    cagrad,
    dual_proj,
    gradnorm,
    inexact_mgda,
    mgda,
    pcgrad,
    upgrad,
)
from multiterm_optax import reweight as reweight_by
from tests.weightings import _jacobians, _properties

PARAMETERS = 24
SCALES = [1e-15, 1e-10, 1.0, 1e5, 1e10, 1e15]
KINDS = _jacobians.WELL_POSED + _jacobians.DEGENERATE

# What each promises beyond being finite and leaving a single gradient alone:
#   simplex: weights that are not negative and sum to 1
#   permutes: a direction that does not depend on the order of the terms
#   invariant: weights that do not depend on the scale of all gradients
#   agrees: a direction that conflicts with no term
#   shortest: the min-norm point
METHODS = {
    "mgda": (mgda, {"simplex", "permutes", "invariant", "agrees", "shortest"}),
    # Weights found for unit gradients multiply the gradients as they are: where two are
    # parallel, the weights are not unique and then neither is the direction.
    "mgda l2": (lambda: mgda("l2"), {"simplex"}),
    "mgda loss": (lambda: mgda("loss"), {"simplex", "permutes", "invariant"}),
    "mgda loss+": (lambda: mgda("loss+"), {"simplex"}),
    "inexact_mgda": (
        lambda: inexact_mgda(0.0),
        {"simplex", "permutes", "invariant", "agrees", "shortest"},
    ),
    "cagrad": (cagrad, {"permutes", "invariant"}),
    "upgrad": (upgrad, {"permutes", "invariant", "agrees"}),
    "dual_proj": (dual_proj, {"permutes", "invariant", "agrees"}),
    # PCGrad draws the order of its projections: permuting changes the draw.
    "pcgrad": (lambda: pcgrad(jax.random.key(0)), {"invariant"}),
    # The first step's weights are equal, whatever the gradients.
    "gradnorm": (gradnorm, {"permutes", "invariant"}),
}


def promising(promise):
    return pytest.mark.parametrize(
        "name", [name for name, (_, promises) in METHODS.items() if promise in promises]
    )


every_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def compiled(name, x64):
    del x64  # a trace of its own for each precision

    @jax.jit
    def weigh(rows):
        num_terms = rows.shape[0]
        tx = reweight_by(METHODS[name][0](), num_terms)
        losses = jnp.ones(num_terms, rows.dtype)
        _, state = tx.update(rows, tx.init(rows[0]), losses=losses)
        return state.weights

    return weigh


@functools.cache
def weights_of(name, x64, shape, dtype, entries):
    """Many promises are about the same gradients: their weights are found once."""
    rows = np.frombuffer(entries, dtype).reshape(shape)
    return np.asarray(compiled(name, x64)(jnp.asarray(rows)))


def method(name):
    x64 = bool(jax.config.jax_enable_x64)
    return lambda rows: weights_of(
        name, x64, rows.shape, rows.dtype.str, rows.tobytes()
    )


def jacobians(terms, dtype=np.float32):
    rng = np.random.default_rng(0)
    size = max(PARAMETERS, terms)
    kinds = [k for k in KINDS if k is not _jacobians.more_terms_than_parameters]
    return [kind(rng, terms, size).astype(dtype) for kind in kinds]


def test_every_gramian_method_states_its_promises():
    def reads_gramian(factory):
        required = {
            name: {"key": jax.random.key(0), "eps": 0.0, "weights": [1.0]}[name]
            for name, one in inspect.signature(factory).parameters.items()
            if one.default is one.empty
        }
        made = factory(**required)
        return isinstance(made, Weighting) and made.reads_gramian

    factories = {
        name: factory
        for name, factory in vars(multiterm_optax.weightings).items()
        if inspect.isfunction(factory) and reads_gramian(factory)
    }
    assert set(factories) == {name.split()[0] for name in METHODS}


@every_method
@pytest.mark.parametrize("terms", [1, 2, 3, 64])
@pytest.mark.parametrize("scale", SCALES)
def test_finite(name, terms, scale):
    for rows in jacobians(terms):
        _properties.assert_finite(method(name), rows * np.float32(scale))


@every_method
@pytest.mark.parametrize("terms", [1, 2, 3, 64])
def test_zero_gradients(name, terms):
    _properties.assert_zero_for_zero(method(name), jacobians(terms)[0])


@every_method
@pytest.mark.parametrize("terms", [2, 3])
def test_some_gradients_zero(name, terms):
    for rows in jacobians(terms):
        for term in range(terms):
            some = rows.copy()
            some[term] = 0
            _properties.assert_finite(method(name), some)


@every_method
def test_single_gradient(name):
    rows = jacobians(1)[0]
    _properties.assert_single_gradient_untouched(method(name), rows)


@promising("simplex")
@pytest.mark.parametrize("terms", [2, 3, 64])
def test_simplex(name, terms):
    for rows in jacobians(terms):
        _properties.assert_weights_sum_to_one(method(name), rows)


@promising("permutes")
@pytest.mark.parametrize("terms", [2, 3, 64])
def test_permutation(name, terms):
    order = np.random.default_rng(1).permutation(terms)
    for rows in jacobians(terms):
        _properties.assert_permutes(method(name), rows, order)


@promising("invariant")
@pytest.mark.parametrize("terms", [2, 3, 64])
@pytest.mark.parametrize("scale", SCALES)
def test_scale(name, terms, scale):
    for rows in jacobians(terms):
        _properties.assert_invariant_to_scale(method(name), rows, scale)


@promising("agrees")
@pytest.mark.parametrize("terms", [2, 3, 64])
@pytest.mark.parametrize("scale", SCALES)
def test_no_conflict(name, terms, scale):
    for rows in jacobians(terms):
        _properties.assert_conflicts_with_no_term(
            method(name), rows * np.float32(scale)
        )


@promising("shortest")
@pytest.mark.parametrize("terms", [2, 3, 64])
def test_min_norm(name, terms):
    for rows in jacobians(terms):
        _properties.assert_min_norm(method(name), rows)


@pytest.mark.usefixtures("x64")
class TestDoublePrecision:
    """The same promises in float64, and to its digits."""

    @every_method
    @pytest.mark.parametrize("scale", SCALES)
    def test_finite(self, name, scale):
        for rows in jacobians(3, np.float64):
            _properties.assert_finite(method(name), rows * scale)

    @promising("permutes")
    def test_permutation(self, name):
        for rows in jacobians(3, np.float64):
            _properties.assert_permutes(method(name), rows, np.array([2, 0, 1]))

    @promising("invariant")
    @pytest.mark.parametrize("scale", SCALES)
    def test_scale(self, name, scale):
        for rows in jacobians(3, np.float64):
            _properties.assert_invariant_to_scale(method(name), rows, scale)

    @promising("agrees")
    def test_no_conflict(self, name):
        for rows in jacobians(3, np.float64):
            _properties.assert_conflicts_with_no_term(method(name), rows)

    @promising("shortest")
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
    """Three gradients in five dimensions, some of them made of the others."""
    rows = np.array(draw(st.lists(entries, min_size=15, max_size=15))).reshape(3, 5)
    relation = draw(st.sampled_from(["none", "equal", "opposed", "multiple", "zero"]))
    factor = {"equal": 1, "opposed": -1, "multiple": 2.5, "zero": 0}.get(relation)
    if factor is not None:
        rows[2] = factor * rows[0]
    return rows.astype(np.float32)


@every_method
@given(rows=drawn_jacobians(), scale=st.sampled_from(SCALES))
def test_drawn_jacobians_are_finite(name, rows, scale):
    _properties.assert_finite(method(name), rows * np.float32(scale))


@promising("shortest")
@given(rows=drawn_jacobians())
def test_drawn_jacobians_meet_the_optimality_conditions(name, rows):
    _properties.assert_conflicts_with_no_term(method(name), rows)
    found = _properties.direction(method(name)(rows), rows)
    slack = rows.astype(np.float64) @ found - found @ found
    size = _properties.longest(rows)
    assert slack.min() >= -_properties.tolerance(rows) * size * size
