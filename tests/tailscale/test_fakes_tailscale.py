"""The fakes of Tailscale say what a real one says: field by field, text by text."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from proxy.tailnet.device import of_neighbours
from tests.fakes.localapi import ANSWERS, Tailnet, person, recorded, tagged, tailscaled

FAKE = Path(__file__).parent.parent / "fakes/tailscale"


@pytest.fixture
def folder():
    """Give a folder whose path is short enough for the address of a Unix socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def shape(value):
    """Return the fields of a document, all the way down, without what they hold; texts that vary are one."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize(
    ("state", "name", "version"),
    [
        pytest.param({}, "status-nopeers-running.txt", "1.102.5", id="running"),
        pytest.param({"version": "1.98.10"}, "status-nopeers-running.txt", "1.98.10", id="running_1_98"),
        pytest.param({"state": "Stopped"}, "status-stopped.txt", "1.102.5", id="stopped"),
        pytest.param({"state": "NeedsMachineAuth"}, "status-needs-approval.txt", "1.102.5", id="needs_approval"),
        pytest.param({"state": "NeedsLogin"}, "status-needs-login-authurl.txt", "1.102.5", id="needs_login"),
        pytest.param(
            {"state": "NeedsLogin", "expired": True, "key_expiry": "2026-11-30T19:04:04Z"},
            *("status-own-key-expired.json", "1.102.5-headscale"),
            id="key_expired",
        ),
    ],
)
def test_status(folder, state, name, version):
    """A status has the fields that a real one has in that state, each of the same kind."""
    tailnet = Tailnet(folder)
    tailnet.change(**state)
    shown, real = tailnet.status(), recorded(name, version)
    assert shape(shown) == shape(real)
    assert (shown["BackendState"], shown["Health"]) == (real["BackendState"], real["Health"])


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        pytest.param("Stopped", True, id="stopped"),
        pytest.param("NeedsMachineAuth", True, id="waits_for_approval"),
        pytest.param("NeedsLogin", False, id="never_logged_in"),
        pytest.param("NoState", False, id="starts"),
    ],
)
def test_addresses_outlive_the_state(folder, state, shown):
    """Once there was a netmap, addresses and name are reported whatever the state, as a real tailscaled does."""
    tailnet = Tailnet(folder)
    tailnet.change(state=state)
    status = tailnet.status()
    assert (status["TailscaleIPs"] == tailnet.read()["ips"]) is shown
    assert (status["Self"]["DNSName"] == "mac.tail1234.ts.net.") is shown


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        pytest.param(person("laptop", "alice@example.com"), "whois-user.txt", id="user"),
        pytest.param(tagged("robot", "tag:robot"), "whois-tagged.txt", id="tagged"),
    ],
)
def test_whois(answer, name):
    """An answer to whois has at least the fields that are read, as real ones have them."""
    real = recorded(name)
    assert shape(answer["UserProfile"]) == shape(real["UserProfile"])
    assert real["Node"].keys() - answer["Node"].keys() == set()
    assert answer.keys() == real.keys()


def test_status_with_peers(folder):
    """A status with peers has each device once, with the fields that real ones have there."""
    tailnet, (laptop, laptop6, robot) = Tailnet(folder), ("100.64.0.7", "fd7a:115c:a1e0::7", "100.64.0.8")
    alice = person("laptop", "alice@example.com")
    tailnet.change(peers={laptop: alice, laptop6: alice, robot: tagged("robot", "tag:robot")})
    shown = tailnet.status_with_peers()
    real = {peer["HostName"]: peer for peer in recorded("status-peers-running.txt")["Peer"].values()}
    found = {peer["DNSName"].partition(".")[0]: peer for peer in shown["Peer"].values()}
    assert {name: shape(peer).keys() for name, peer in found.items()} == {
        name: shape(real[name]).keys() for name in ("laptop", "robot")
    }
    assert found["laptop"]["TailscaleIPs"] == [laptop, laptop6]
    assert [who.login for who in of_neighbours(shown) if who.device == "laptop"] == ["alice@example.com"]
    assert [who.tags for who in of_neighbours(shown) if who.device == "robot"] == [("tag:robot",)]


def ask(path, target, **fields):
    """Return status, fields and content of an answer of the fake LocalAPI."""
    connection = http.client.HTTPConnection("local-tailscaled.sock")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", f"/localapi/v0/{target}", headers=fields)
    answer = connection.getresponse()
    return answer.status, {name.lower() for name, _ in answer.getheaders()}, answer.read()


@pytest.mark.parametrize(
    ("target", "status", "content"),
    [
        pytest.param("whois?addr=100.64.0.9%3A5", 404, b"no match for IP:port\n", id="unknown_peer"),
        pytest.param("whois?addr=nonsense", 400, b"invalid 'addr' parameter\n", id="bad_address"),
        pytest.param("whois?addr=FD7A:115C:A1E0::2", 404, b"no match for IP:port\n", id="upper_case"),
        pytest.param("whois?addr=100.64.0.300:1", 400, b"invalid 'addr' parameter\n", id="no_such_number"),
        pytest.param("whois?addr=100.64.0.2:99999", 400, b"invalid 'addr' parameter\n", id="no_such_port"),
        pytest.param("whois?addr=[100.64.0.2]:1", 400, b"invalid 'addr' parameter\n", id="brackets_round_ipv4"),
        pytest.param("whois?addr=[fd7a:115c:a1e0::2]", 400, b"invalid 'addr' parameter\n", id="brackets_without_port"),
        pytest.param("whois", 400, b"missing 'addr' parameter\n", id="no_address"),
        pytest.param("nothing", 404, b"404 page not found\n", id="unknown_path"),
        pytest.param("serve-config", 200, b"null", id="never_a_rule"),
    ],
)
def test_localapi(folder, target, status, content):
    """Status codes, texts and field names are a real LocalAPI's."""
    with tailscaled(folder, folder / "socket"):
        its_status, names, its_content = ask(folder / "socket", target)
    assert (its_status, its_content) == (status, content)
    real = (ANSWERS / "1.102.5-headscale/whois-unknown.json").read_text().partition("\n\n")[0]
    assert {line.partition(":")[0].lower() for line in real.splitlines()[1:]} <= names


def test_no_rules_any_more(folder):
    """After the last rule was removed the configuration is an empty object, no longer null."""
    Tailnet(folder).change(serve={})
    with tailscaled(folder, folder / "socket"):
        assert ask(folder / "socket", "serve-config")[2] == b"{}"


@pytest.mark.parametrize(
    ("state", "words", "code", "out", "err"),
    [
        pytest.param({}, "status", 0, "100.101.102.103  mac  alice@  macOS  -  \n", "", id="status"),
        pytest.param({"state": "Starting"}, "status", 0, "100.101.102.103  mac  alice@  macOS  -  \n", "", id="starts"),
        pytest.param({"state": "Stopped"}, "status", 1, "Tailscale is stopped.\n", "", id="stopped"),
        pytest.param(
            {"state": "NeedsLogin", "login": "https://login.example/a/1"},
            *("status", 1, "Logged out.\nLog in at: https://login.example/a/1\n", ""),
            id="waits_for_a_browser",
        ),
        pytest.param(
            {"state": "NeedsMachineAuth"},
            *("status", 1, "Machine is not yet approved by tailnet admin.\n", ""),
            id="waits_for_approval",
        ),
        pytest.param({"state": "Stopped"}, "ip -4", 0, "100.101.102.103\n", "", id="ip_while_stopped"),
        pytest.param(
            {"state": "NeedsLogin"}, "ip", 1, "", "no current Tailscale IPs; state: NeedsLogin\n", id="ip_before_login"
        ),
        pytest.param({}, "serve status --json", 0, "{}\n", "", id="no_rules"),
        pytest.param({}, "whois --json 100.64.0.9:5", 1, "", "peer not found\n", id="unknown_peer"),
        pytest.param({"state": "Stopped"}, "down", 0, "", "Tailscale was already stopped.\n", id="down_again"),
        pytest.param({}, "nosuch", 1, "", "tailscale: unknown subcommand: nosuch\n", id="unknown_word"),
        pytest.param(
            {"cli": "dead"},
            *("status --json", 1, ""),
            "failed to connect to local tailscaled; it doesn't appear to be running"
            " (sudo systemctl start tailscaled ?)\n",
            id="no_daemon",
        ),
    ],
)
def test_command(folder, state, words, code, out, err):
    """Texts, streams and exit codes are the real command's."""
    Tailnet(folder).change(**state)
    environ = {**os.environ, "FAKE_TAILSCALE": str(folder)}
    done = subprocess.run([FAKE, *words.split()], env=environ, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_command_and_localapi_say_the_same(folder):
    """Both give one state: the command prints the LocalAPI's documents."""
    environ = {**os.environ, "FAKE_TAILSCALE": str(folder)}
    for words, document in (("status --json", Tailnet(folder).status()), ("debug prefs", Tailnet(folder).prefs())):
        done = subprocess.run([FAKE, *words.split()], env=environ, capture_output=True, check=True, timeout=30)
        assert json.loads(done.stdout) == document
