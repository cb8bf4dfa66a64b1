"""Annotations are checked at every call of every closure."""

import gc
import weakref

import jaxtyping
import pytest
from beartype import beartype

import multiterm_optax as mt
from tests import _annotations


def adder(offset):
    @_annotations.jaxtyped(typechecker=beartype)
    def add(x: int) -> int:
        return add(x - 10) + 10 if x > 10 else x + offset

    return add


def test_each_closure_is_checked_and_is_itself():
    first, second = adder(1), adder(2)
    assert [first(2), second(2), first(25), second(25)] == [3, 4, 26, 27]
    for add in (first, second):
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters"):
            add("2")
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        adder(0.5)(2)
    assert first(2) == 3


def test_no_closure_is_kept():
    def made():
        @_annotations.jaxtyped(typechecker=beartype)
        def identity(x: int) -> int:
            return x

        return identity

    identity = made()
    assert identity(2) == 2
    seen = weakref.ref(identity)
    del identity
    gc.collect(1)  # what is young: all that was imported takes a second
    assert seen() is None


@pytest.mark.usefixtures("own_errors")
def test_or_not_at_all():
    assert adder(1)(0.5) == 1.5


def test_the_package_is():
    with pytest.raises(jaxtyping.TypeCheckError, match="num_terms"):
        mt.mtadam(1e-3, num_terms="2")
