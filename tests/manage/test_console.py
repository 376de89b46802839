"""Tables fit the terminal they are printed on; in a pipe they are whole and plain."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest

from proxy.terminal.console import print_tables, show, table

LONG = "/" + "/".join(["folder"] * 20)
ROWS = [("access_log", LONG, "default"), ("port", "11434", "flag --port")]


class Terminal(io.StringIO):
    """A terminal of 40 columns instead of standard output."""

    encoding = "utf-8"

    def isatty(self):
        """Say that it is one."""
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Return a terminal that shows colours."""
    for name, value in {"COLUMNS": "40", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_table_in_a_pipe(capsys):
    """Without a terminal columns are aligned, nothing is cut, and no line ends in blanks."""
    show(table(ROWS), indent=2)
    blanks = " " * (len(LONG) - len("11434"))
    assert capsys.readouterr().out == f"  access_log  {LONG}  default\n  port        11434{blanks}  flag --port\n"


def test_table_on_a_narrow_terminal(terminal):
    """A text that is too long for its column is folded: no line is wider than the terminal, and nothing is lost."""
    with redirect_stdout(terminal):
        show(table(ROWS), indent=2)
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(lines).count("/") == LONG.count("/")


def test_numbers_end_below_each_other(capsys):
    """Columns of numbers end at the same place, with their heading."""
    show(table([("a", "1"), ("b", "1,000")], heading=("", "in"), right={1}))
    assert capsys.readouterr().out == "      in\na      1\nb  1,000\n"


@pytest.mark.parametrize("cell", ["\x1b[31mred", "a\u2028b", "[bold]x[/bold]", "\u202eabc"])
def test_no_cell_steers_the_terminal(capsys, cell):
    """A cell is shown as it is, whatever it holds, with all that could steer a terminal escaped."""
    show(table([(cell, "x")]))
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert shown[:-1].isprintable()
    assert "[bold]" in shown or cell[0] != "["


@pytest.mark.parametrize(("no_color", "styled"), [("", True), ("1", False)], ids=["unset", "set"])
def test_no_color(monkeypatch, terminal, no_color, styled):
    """With NO_COLOR a terminal gets plain text: neither colours nor bold titles."""
    monkeypatch.setenv("NO_COLOR", no_color)
    with redirect_stdout(terminal):
        print_tables([("settings", ROWS)])
    assert ("\x1b[1msettings" in terminal.getvalue()) is styled
    assert ("\x1b" in terminal.getvalue()) is styled
