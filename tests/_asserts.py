"""Properties, by name. Each raises AssertionError and says which leaf broke it."""

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree):
    """Leaves with their paths, as text."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in paths]


def _signature(leaf):
    aval = jax.typeof(leaf)
    return aval.shape, aval.dtype, bool(aval.weak_type)


def assert_same_structure(found, expected):
    """One tree structure: containers, keys and None in the same places."""
    found, expected = jax.tree.structure(found), jax.tree.structure(expected)
    assert found == expected, f"structure {found}, expected {expected}"


def assert_same_signature(found, expected):
    """Equal structures, shapes, dtypes and weak types, so that no step retraces."""
    assert_same_structure(found, expected)
    for (path, one), (_, other) in zip(
        named_leaves(found), named_leaves(expected), strict=True
    ):
        assert _signature(one) == _signature(other), (
            f"{path}: (shape, dtype, weak) is {_signature(one)}, "
            f"expected {_signature(other)}"
        )


def assert_strong_types(tree):
    """No leaf with a weak type: it would turn strong, and retrace, after a step."""
    weak = [path for path, leaf in named_leaves(tree) if jax.typeof(leaf).weak_type]
    assert not weak, f"weakly typed: {weak}"


def assert_term_shapes(updates, params, num_terms):
    """Every leaf [K, *p], in the parameter's dtype."""
    _assert_leaves_like(updates, params, (num_terms,))


def assert_param_shapes(updates, params):
    """Every leaf [*p], in the parameter's dtype."""
    _assert_leaves_like(updates, params, ())


def _assert_leaves_like(updates, params, lead):
    assert_same_structure(updates, params)
    for (path, update), param in zip(
        named_leaves(updates), jax.tree.leaves(params), strict=True
    ):
        assert update.shape == lead + param.shape, f"{path}: shape {update.shape}"
        assert update.dtype == param.dtype, f"{path}: dtype {update.dtype}"


def assert_finite(tree):
    """No NaN and no infinity in any leaf."""
    for path, leaf in named_leaves(tree):
        finite = np.isfinite(np.asarray(leaf, dtype=np.float64))
        assert finite.all(), f"{path} is not finite: {leaf}"


def assert_zero(tree):
    """Zeros in every leaf; NaN is no zero."""
    for path, leaf in named_leaves(tree):
        assert np.all(np.asarray(leaf, dtype=np.float64) == 0), f"{path} is {leaf}"


def assert_close(found, expected, rtol, atol=0.0):
    """Equal structures, and leaves equal relative to the leaf's largest entry."""
    assert_same_structure(found, expected)
    for (path, one), (_, other) in zip(
        named_leaves(found), named_leaves(expected), strict=True
    ):
        one = np.asarray(one, dtype=np.float64)
        other = np.asarray(other, dtype=np.float64)
        assert one.shape == other.shape, f"{path}: {one.shape} against {other.shape}"
        gap = np.max(np.abs(one - other), initial=0.0)
        bound = atol + rtol * np.max(np.abs(other), initial=0.0)
        assert gap <= bound, f"{path}: off by {gap:.3e}, allowed {bound:.3e}"


def assert_identical(found, expected):
    """Bit for bit."""
    assert_close(found, expected, rtol=0.0)


def assert_different(found, expected):
    """At least one entry of one leaf differs."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    assert any(bool(jnp.any(a != b)) for a, b in pairs), "the two are equal"


class CountedTraces:
    """Wraps a function and counts how often JAX traces it."""

    def __init__(self, function):
        self.function = function
        self.count = 0

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.function(*args, **kwargs)


def assert_single_trace(counted):
    """Traced once, whatever the number of calls."""
    assert counted.count == 1, f"traced {counted.count} times"


def assert_message(error, *words):
    """The message contains every one of the words: argument, expected, found."""
    text = str(error)
    missing = [word for word in words if word not in text]
    assert not missing, f"the message lacks {missing}: {text}"
