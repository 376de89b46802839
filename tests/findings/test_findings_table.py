"""One table says which checks run when, and how much their findings count there."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from proxy.manage.findings import table
from proxy.manage.findings.table import GROUPS, TABLE, Counts, Row, When, findings, timed
from proxy.terminal.finding import Finding, Outcome

ALL = [Finding(str(outcome), outcome, "seen") for outcome in Outcome]
MODULES = sorted({row.look.__module__ for row in TABLE})


def test_each_check_has_one_row():
    """No check stands in the table twice, and none that runs never."""
    looks = [row.look for row in TABLE]
    assert len(looks) == len(set(looks))
    assert [row.look.__name__ for row in TABLE if all(row.counts(when) is Counts.NEVER for when in When)] == []


@pytest.mark.parametrize("module", MODULES)
def test_each_check_is_in_the_table(module):
    """A public function that yields findings from the facts alone is a check, and has its row."""
    inside = vars(import_module(module)).values()
    own = [each for each in inside if inspect.isgeneratorfunction(each) and each.__module__ == module]
    checks = {
        each
        for each in own
        if not each.__name__.startswith("_") and list(inspect.signature(each).parameters)[:1] == ["facts"]
    }
    assert {each.__name__ for each in checks - {row.look for row in TABLE}} == set()


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (Counts.FULLY, ["pass", "warn", "fail", "skip"]),
        (Counts.SOFTLY, ["pass", "warn", "warn", "skip"]),
        (Counts.IF_WRONG, ["warn", "fail"]),
        (Counts.SOFTLY_IF_WRONG, ["warn", "warn"]),
        (Counts.NEVER, []),
    ],
)
def test_counts(monkeypatch, counts, told):
    """A moment takes findings as they are, softens failures, leaves out what is well, or doesn't look."""

    class Nowhere:
        only_shown = False

    row = Row(GROUPS[0], lambda _: iter(ALL), *[counts] * len(When))
    monkeypatch.setattr(table, "TABLE", (row,))
    for when in When:
        assert [str(each.outcome) for each in findings(Nowhere(), when)] == told
    assert [str(each.outcome) for _, each, _ in timed(Nowhere(), When.VERIFY)] == told


def test_verify_has_groups():
    """Whatever `verify` looks at belongs to one of its groups."""
    assert {row.group for row in TABLE if row.counts(When.VERIFY) is not Counts.NEVER} == set(GROUPS)
