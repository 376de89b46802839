"""What is repeated less: which cases `make quick` leaves out, and which tests coverage doesn't trace."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from coverage import Coverage
from hypothesis import given
from hypothesis import strategies as st

from tests.support import examples
from tests.support.examples import MANY, Tracing, left_out, untraced


@given(st.none())
def a_property(_):
    """Hold, whatever comes."""


def items(count, obj=None):
    """Return the cases of one test."""
    return [SimpleNamespace(nodeid=f"tests/test_a.py::test_b[{n}]", obj=obj) for n in range(count)]


def test_every_tenth_of_many_cases_is_traced():
    """The first case of many is traced, and each tenth after it."""
    cases = items(MANY)
    assert [n for n, each in enumerate(cases) if each not in untraced(cases)] == [*range(0, MANY, 10)]


def test_each_of_few_cases_is_traced():
    """A test with few cases is traced in each."""
    assert untraced(items(MANY - 1)) == []


def test_random_examples_are_not_traced():
    """A test with random examples is not traced, because what it reaches differs from run to run."""
    cases = items(1, a_property)
    assert untraced(cases) == cases


@pytest.mark.parametrize(("step", "left"), [(1, 0), (10, MANY - MANY // 10)], ids=["test", "quick"])
def test_quick_leaves_out_nine_of_ten(monkeypatch, step, left):
    """All cases are played, or a tenth of many."""
    monkeypatch.setattr(examples, "_STEP", step)
    assert len(left_out(items(MANY))) == left


class Marked:
    """A test with some marks."""

    def __init__(self, *marks):
        self.marks = marks

    def get_closest_marker(self, name):
        """Return whether it has this one."""
        return name in self.marks


class Traced:
    """A running measurement, and how it is switched."""

    def __init__(self, monkeypatch, tracer):
        self.switched = []
        monkeypatch.setattr(Coverage, "current", lambda: self)
        monkeypatch.setattr(sys, "gettrace", lambda: tracer)

    def stop(self):
        """Trace no more."""
        self.switched.append("off")

    def start(self):
        """Trace again."""
        self.switched.append("on")

    def play(self, *items):
        """Run tests."""
        tracing = Tracing()
        for item in items:
            running = tracing.pytest_runtest_protocol(item)
            next(running)
            with pytest.raises(StopIteration):
                next(running)


def test_tracing_is_off_for_tests_that_are_marked(monkeypatch):
    """Coverage is switched off before a marked test, and on before the next one that isn't."""
    traced = Traced(monkeypatch, tracer=print)
    traced.play(Marked(), Marked("untraced"), Marked("untraced", "process"), Marked(), Marked())
    assert traced.switched == ["off", "on"]


def test_what_costs_little_stays_on(monkeypatch):
    """Coverage that sets no trace function, as from Python 3.14 on, isn't switched."""
    traced = Traced(monkeypatch, tracer=None)
    traced.play(Marked("untraced"), Marked())
    assert traced.switched == []
