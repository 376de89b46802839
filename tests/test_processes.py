"""The rule by which `make quick` leaves tests out: what leads to the start of a process, however deep."""

from __future__ import annotations

import subprocess
from asyncio import create_subprocess_exec

import pytest

from proxy.manage.machine.machine import Machine
from tests.support import process_marker as processes
from tests.support.process_marker import reaches


def directly():
    subprocess.run(["true"], check=True)


async def with_asyncio():
    await create_subprocess_exec("true")


def through_a_function():
    return directly()


def through_a_circle(again=True):
    return through_another_end() if again else None


def through_another_end():
    through_a_circle(False)
    return inside()


def inside():
    def deeper():
        return subprocess.check_output(["true"])

    return deeper


class Tool:
    """Something that a test uses."""

    @property
    def answer(self):
        return directly()


class Derived(Tool):
    """Something that is made of it."""


def through_a_class():
    return Derived()


TABLE = {"name": directly}


def through_a_table():
    return TABLE["name"]


def on_a_machine(tmp_path):
    return Machine(tmp_path, 0)


def in_a_closure():
    called = directly

    def inner():
        return called()

    return inner


STARTING = (directly, with_asyncio, through_a_function, through_a_circle, through_another_end, inside, through_a_class)
STARTING += (through_a_table, on_a_machine, in_a_closure())


@pytest.mark.parametrize("function", STARTING)
def test_starts_processes(function):
    """A process is started where a name on the way starts one."""
    assert reaches(function)


def nothing():
    return processes.EVENTS, pytest.skip, subprocess.PIPE


def recursive():
    return recursive()


@pytest.mark.parametrize("function", [nothing, recursive, subprocess.run, "text", None])
def test_starts_none(function):
    """What isn't of these tests, or only resembles a start, is none."""
    assert not reaches(function)


def test_itself(request):
    """A test, its fixtures and its parameters are judged together, and the mark is set by it."""
    assert not processes.starts_processes(request.node)
    assert request.node.get_closest_marker("process") is None
