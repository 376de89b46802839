"""Processes are seen with their program, their user and the moment they began."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time

import pytest

from proxy.manage.machine.processes import Process, process, processes


@pytest.fixture
def sleeper():
    """Give a process whose last argument has a space in it."""
    command = [sys.executable, "-c", "import time; time.sleep(1000)", "two words"]
    with subprocess.Popen(command) as started:
        yield started
        started.kill()


def test_what_is_seen_of_a_process(sleeper):
    """A process shows its program's path, its command line, its user, and when it began."""
    seen = process(sleeper.pid)
    assert seen.pid == sleeper.pid
    assert os.path.samefile(seen.executable, os.path.realpath(sys.executable))
    assert seen.command.endswith("time.sleep(1000) two words")
    assert (seen.uid, seen.user) == (os.geteuid(), getpass.getuser())
    assert abs(time.time() - seen.begun) < 3600  # seconds since 1970, not since boot


def test_a_process_that_is_gone(sleeper):
    """There is nothing to see of a process that has ended."""
    sleeper.kill()
    sleeper.wait()
    assert process(sleeper.pid) is None


def test_all_processes(sleeper):
    """Each process is among all of them."""
    assert {os.getpid(), sleeper.pid} <= {each.pid for each in processes()}


def test_what_may_not_be_seen(monkeypatch):
    """What the system keeps from this user is empty or None, not an error."""
    hidden = dict.fromkeys(("name", "exe", "cmdline", "uids", "username", "create_time"))
    monkeypatch.setattr("psutil.Process.as_dict", lambda *_: hidden)
    assert process(os.getpid()) == Process(os.getpid())
