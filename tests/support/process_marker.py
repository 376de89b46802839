"""Which tests start processes: they are marked `process` by one rule, and `make quick` leaves them out.

A test starts processes if its own code, a fixture that it gets, or any function or class of these tests that the two
name, however deep, names what starts one. In `make quick` a process that the rule didn't foresee fails its test.
"""

from __future__ import annotations

import inspect
import platform
import sys
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTERS = frozenset(
    {"Popen", "check_call", "check_output", "create_subprocess_exec", "create_subprocess_shell", "fork", "spawnl"}
)
"""Names that start a process; `subprocess.run` is another."""

STARTING = frozenset(
    {
        "bench.python",
        "proxy.dashboard.keeper",
        "proxy.manage.demo.command",
        "proxy.manage.machine.machine",
        "proxy.tailnet.localapi",
    }
)
"""Modules of this package that do: those that run Tailscale's or a Mac's tools, or fakes of them, and the tour."""

EVENTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"})
"""What Python's audit calls the start of a process."""

_ANSWERS: dict[object, bool] = {None: False}


def starts_processes(item: pytest.Function) -> bool:
    """Return whether a test may start a process, by the rule above."""
    fixtures = item._fixtureinfo.name2fixturedefs  # pytest has no public way to them
    named = [definitions[-1].func for name, definitions in fixtures.items() if name in item.fixturenames]
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(reaches(each) for each in (item.function, *named, *given))


def reaches(thing: Any) -> bool:
    """Return whether a function or class of these tests leads to the start of a process."""
    start, seen, left = _plain(thing), set(), [thing]
    while left and not _ANSWERS.get(start):
        each = _plain(left.pop())
        if each is None or each in seen or (each is start and start in _ANSWERS):
            continue
        seen.add(each)
        _ANSWERS[start] = _ANSWERS.get(each, False) or (isinstance(each, FunctionType) and _starts(each))
        left += _parts(each)
    return _ANSWERS.get(start, False)


def _plain(thing: Any) -> FunctionType | type | None:
    """Return the function or class that a value is, without decorators; None for what isn't of these tests."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    thing = getattr(thing, "__func__", thing)
    ours = isinstance(thing, FunctionType | type) and thing.__module__.startswith("tests.")
    return thing if ours else None


def _parts(thing: FunctionType | type) -> Iterator[Any]:
    """Yield what a class consists of, or what a function names and encloses."""
    if isinstance(thing, type):
        yield from thing.__bases__
        for value in vars(thing).values():
            yield from (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", value),)
        return
    names = _names(thing.__code__)
    for name in names:
        value = thing.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.startswith("tests."):
            yield from (getattr(value, each, None) for each in names)
        yield from value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    for cell in thing.__closure__ or ():
        yield cell.cell_contents


def _starts(function: FunctionType) -> bool:
    names = _names(function.__code__)
    values = [function.__globals__.get(name) for name in names]
    homes = {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "") for value in values}
    return bool(names & STARTERS) or {"subprocess", "run"} <= names or bool(homes & STARTING)


def _names(code: CodeType) -> set[str]:
    """Return every name in a function's code, and in that of the functions inside it."""
    found = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found


# --- in `make quick` --------------------------------------------------------------------------------------------------


class Watch:
    """Fails a test that starts a process though the rule said that it wouldn't."""

    def __init__(self) -> None:
        self._started: list[str] = []
        platform.processor()  # the SDKs name it, and Python asks `uname` for it, once in a process
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS:
            self._started.append(f"{event} {args[:2]}"[:200])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Run the test, and then judge it."""
        self._started.clear()
        yield
        if self._started:
            pytest.fail(
                f"started a process, which tests/support/process_marker.py didn't foresee: {self._started}",
                pytrace=False,
            )
