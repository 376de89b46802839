"""Whose a port is: what lsof shows is named, and what it can't show is said to be another user's."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from proxy.manage.facts import listeners
from proxy.manage.facts.facts import Facts
from proxy.manage.facts.listeners import Listener
from proxy.manage.findings import addresses
from proxy.settings.settings import load
from tests.support.mac.fake_mac import Mac

ADDRESS = "100.101.102.103"
SUDO = "sudo lsof -nP -iTCP:11434 -sTCP:LISTEN"


@pytest.fixture
def mac(tmp_path):
    """Give a Mac on which all is well."""
    mac = Mac(tmp_path)
    yield mac
    mac.close()


def facts(machine):
    """Return the facts of a machine, with default settings."""
    return Facts(machine, load({}, {"HOME": "/nowhere"}))


def taken(address, port):
    """Refuse to bind an address that someone has."""
    return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


PROGRAMS = {
    "framework": (
        "/Library/Frameworks/Python.framework/Versions/3.13/Resources/Python.app/Contents/MacOS/Python",
        *("-I -m proxy", "Python (pid 71)"),
    ),
    "uv": (
        "/Users/alice/Library/Application Support/remote-ollama-proxy/versions/0.1.0-1/bin/python",
        *("-I -m proxy", "python (pid 71)"),
    ),
    "option_in_a_folder": ("/Users/a -b/My Apps -x/bin/serve", "--now", "serve (pid 71)"),
    "plain": ("/opt/homebrew/bin/ollama", "serve", "ollama (pid 71)"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_names_with_spaces(mac, case):
    """A process is named by its program, whatever its folders are called."""
    executable, arguments, who = PROGRAMS[case]
    process = {"pid": 71, "program": f"{executable} {arguments}", "executable": executable}
    mac.change(processes=[{**process, "listen": [["127.0.0.1", 11434]]}])
    (listener,) = listeners.listeners(mac.machine(), [11434])
    assert listener.who == who
    assert listener.program == f"{executable} {arguments}"


@pytest.mark.parametrize(
    ("state", "address", "taken"),
    [
        pytest.param({}, ADDRESS, False, id="free"),
        pytest.param({"foreign": [[ADDRESS, 11434]]}, ADDRESS, True, id="root_has_it"),
        pytest.param({"foreign": [["*", 11434]]}, ADDRESS, True, id="root_has_every_address"),
        pytest.param({"foreign": [["127.0.0.1", 11434]]}, ADDRESS, False, id="root_has_another_address"),
        pytest.param({"own": ["*", 11434]}, ADDRESS, False, id="own_process_has_every_address"),
        pytest.param({"own": [ADDRESS, 11434]}, ADDRESS, True, id="own_process_has_it"),
    ],
)
def test_binding_shows_what_lsof_does_not(mac, state, address, taken):
    """An address is in use when it can't be bound; what lsof doesn't show there is another user's or root's."""
    own = [{"pid": 71, "program": "x", "listen": [state["own"]]}] if "own" in state else []
    mac.change(foreign=state.get("foreign", []), processes=own)
    assert listeners.in_use(mac.machine(), address, 11434) is taken
    finding = addresses.hidden(facts(mac.machine()), "port", address, 11434)
    assert (finding is not None) is (taken and not own)
    if finding is not None:
        assert finding.hint == SUDO
        assert f"{address}:11434 is in use, but by no process of yours" in finding.detail


def test_without_lsof_nobody_is_accused(mac):
    """Where there is no lsof, nothing follows from an empty list."""
    (mac.commands / "lsof").unlink()
    machine = replace(mac.machine(), path=str(mac.commands))
    assert listeners.listeners(machine, [11434]) is None
    assert addresses.hidden(facts(replace(machine, bind=taken)), "port", ADDRESS, 11434) is None


@pytest.mark.parametrize("address", [ADDRESS, "*"])
def test_who_is_seen_is_not_hidden(mac, address):
    """A listener of this user's on the address, or on every one, is no stranger."""
    seen = facts(replace(mac.machine(), bind=taken))
    seen.listening = (Listener(1, address, 11434, "x"),)
    assert addresses.hidden(seen, "port", ADDRESS, 11434) is None
    seen.listening = (Listener(1, address, 8080, "x"),)
    assert addresses.hidden(seen, "port", ADDRESS, 11434) is not None
