"""An install that serves, on a Mac of fakes with real processes; and the proof, before what doesn't deserve it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from proxy import __version__
from proxy.manage.facts.answers import Answer, ask
from proxy.manage.facts.facts import Facts
from proxy.manage.facts.mac import Options
from proxy.manage.findings import ollama as findings_ollama
from proxy.manage.findings.table import When
from proxy.manage.findings.table import findings as found_at
from proxy.manage.install.prove import Prove
from proxy.manage.machine import environment
from proxy.manage.machine.launchd import OLLAMA, PROXY
from proxy.manage.machine.source import Checkout
from proxy.settings.settings import load
from proxy.simulated_ollama import SimulatedOllama
from proxy.tailnet.tailscale import Tailnet
from proxy.terminal.finding import Outcome
from tests.fakes.scripted_tailscale import ScriptedTailscale
from tests.support.mac.fake_launchd import alive, until
from tests.support.mac.fake_mac import FRAMEWORK, Mac
from tests.support.patience import PATIENCE
from tests.support.ports import free_ports

ROOT = Path(__file__).parent.parent.parent
UP = Tailnet("Running", ("100.101.102.103",), tun=True)


@pytest.fixture
def mac(tmp_path):
    """Give a Mac whose Ollama and proxy serve."""
    mac = Mac(tmp_path, silent=False)
    yield mac
    mac.close()


def asked(port, method, path):
    """Return status and content of an answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", method=method, data=b"" if method == "POST" else None
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


# --- a whole life -----------------------------------------------------------------------------------------------------


def test_life(mac, monkeypatch):
    """What an install proves is so: allowed is answered, blocked is blocked; so after an upgrade; then it is gone."""
    port, upstream = mac.on_loopback('[ollama_env]\nOLLAMA_KEEP_ALIVE = "24h"\n')
    assert mac.install() == 0, mac.heard
    notes = [line.strip() for line in mac.heard.lines]
    assert f"an allowed request: GET /api/version at 127.0.0.1:{port}: 200" in notes
    assert f"a blocked request: POST /api/pull at 127.0.0.1:{port}: 403" in notes
    assert f"Ollama's address: loopback only: 127.0.0.1:{upstream}" in notes
    assert asked(port, "GET", "/api/version") == (200, b'{"version":"0.32.15"}')
    assert asked(port, "DELETE", "/api/delete")[0] == 403
    pids = {label: mac.job(label)["pid"] for label in (PROXY, OLLAMA)}
    monkeypatch.setattr(Checkout, "here", lambda: Checkout(ROOT, "9.9.9-00000000"))
    assert mac.install() == 0, mac.heard
    assert asked(port, "GET", "/api/tags")[0] == 200
    assert mac.job(OLLAMA)["pid"] == pids[OLLAMA]
    assert not alive(pids[PROXY])
    log = [json.loads(line) for line in (mac.machine().logs / "access.log").read_text().splitlines()]
    assert {line["verdict"] for line in log} == {"allowed", "refused"}
    assert mac.uninstall(purge=True) == 0
    for each in (port, upstream):
        with pytest.raises(OSError, match="refused"):
            asked(each, "GET", "/api/version")


def test_ollama_that_does_not_answer(mac):
    """An Ollama that doesn't come up fails the install, which names its log, and leaves no trace."""
    mac.on_loopback()
    before = mac.seen()
    ollama = (mac.root / "opt/homebrew/bin/ollama").read_text().splitlines()[1]
    mac.script("opt/homebrew/bin/ollama", f'[ "$1" = serve ] && exit 1\n{ollama}')
    assert mac.install(seconds=0.5) == 1
    text, hint = mac.heard.errors[0]
    assert text.endswith(": no answer for 0.5 s")
    assert hint == "tail ~/Library/Logs/remote-ollama-proxy/ollama.log"
    assert mac.seen() == before


def test_proxy_that_does_not_answer(mac, monkeypatch):
    """A proxy that doesn't start fails the install; its logs stay, to show the reason."""
    port, _ = mac.on_loopback()
    before = mac.seen()
    monkeypatch.setattr(mac, "build", lambda *given: broken(Mac.build, mac, *given))
    assert mac.install(seconds=5.0) == 1  # Ollama must answer within it
    text, hint = mac.heard.errors[0]
    assert f"GET /api/version at 127.0.0.1:{port}: no answer" in text
    assert "diagnostics.log" in hint
    assert b"not today" in mac.seen()["tree"].pop("Library/Logs/remote-ollama-proxy/launchd.log")[1]
    assert {path for path in mac.seen()["tree"] if "Logs" not in path} == set(before["tree"])
    assert mac.seen()["jobs"] == {}


def broken(build, mac, machine, checkout, python, folder):
    build(mac, machine, checkout, python, folder)
    program = folder / "bin" / "served"
    program.write_text(program.read_text().replace("exec env", "echo not today >&2; exit 1; exec env"))


# --- what is no proof -------------------------------------------------------------------------------------------------


def facts_of(machine, ask=ask, **flags):
    """Return the facts of a proxy that was just installed."""
    given = {"listen": "127.0.0.1", **{name: str(value) for name, value in flags.items()}}
    return Facts(machine, load(given, {"HOME": "/nowhere"}), tailscale=ScriptedTailscale(UP), ask=ask)


async def findings(machine, **flags):
    """Return what is found after an install at 127.0.0.1, by name."""
    made = await asyncio.to_thread(lambda: list(found_at(facts_of(machine, **flags), When.PROOF)))
    return {finding.name: finding for finding in made}


async def test_ollama_itself_proves_nothing(mac):
    """Where Ollama itself answers, the blocked request is not blocked."""
    async with SimulatedOllama() as ollama:
        found = await findings(mac.machine(), port=ollama.port, upstream="http://127.0.0.1:9")
    assert found["an allowed request"].outcome is Outcome.PASS
    assert found["a blocked request"].outcome is Outcome.FAIL
    assert "instead of 403" in found["a blocked request"].detail


async def test_nobody_proves_nothing(mac):
    """Where nobody answers, both requests fail, with the command that shows more."""
    (port,) = free_ports(1)
    found = await findings(mac.machine(), port=port)
    assert found["an allowed request"].outcome is found["a blocked request"].outcome is Outcome.FAIL
    assert "refused" in found["an allowed request"].detail
    assert found["an allowed request"].hint == "python -m proxy status"


async def test_refusal_of_another_proves_nothing(mac, upstream):
    """A 403 that isn't ours is no proof."""
    upstream.answers(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    found = await findings(mac.machine(), port=upstream.port)
    assert found["a blocked request"].outcome is Outcome.FAIL


async def test_ollama_beyond_loopback(mac):
    """An Ollama that listens beyond loopback is a failure whatever the proxy answers."""
    mac.change(processes=[{"pid": 4711, "program": "ollama serve", "listen": [["*", 11434]]}])
    found = await findings(mac.machine(), port=9)
    assert found["Ollama's address"].outcome is Outcome.FAIL
    assert "ollama (pid 4711) listens on *:11434" in found["Ollama's address"].detail


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda mac: (mac.commands / "lsof").unlink(), "there is no lsof", id="no_lsof"),
        pytest.param(lambda mac: None, "no process of yours listens on port 11434", id="nobody_seen"),
    ],
)
def test_an_empty_list_proves_nothing(mac, change, told):
    """Where no listener is to be seen, nothing is said of where Ollama listens."""
    change(mac)
    machine = replace(mac.machine(), path=str(mac.commands))
    (finding,) = findings_ollama.exposure(facts_of(machine, port=9))
    assert (finding.name, finding.outcome) == ("Ollama's address", Outcome.SKIP)
    assert told in finding.detail


@pytest.mark.parametrize("installed", [True, False])
def test_proof_names_the_firewall(mac, installed):
    """A proxy that can't be reached at its Tailscale address, while Ollama answers, is the firewall's doing."""

    def ask(host, *_, **__):
        if host == "127.0.0.1":
            return Answer(200, b'{"version":"0.32.15"}')
        raise ConnectionResetError(54, "Connection reset by peer")

    mac.change(firewall=1, allow_signed=False)
    if installed:
        mac.plist(PROXY, (str(mac.root / FRAMEWORK / "bin/python3.13"), "-I", "-m", "proxy"))
    told = {finding.name: finding for finding in found_at(facts_of(mac.machine(), ask, listen="tailscale"), When.PROOF)}
    for finding in (told["an allowed request"], told["a blocked request"]):
        assert finding.outcome is Outcome.FAIL
        assert ("Python.app is unlisted" in finding.detail) is installed
        assert ("socketfilterfw --add" in finding.hint) is installed


def test_firewall_is_settled_before_the_first_step(mac):
    """An install ends before its first step while the firewall keeps the proxy's Python out, whatever --yes says."""
    mac.on_loopback()
    mac.change(firewall=1, allow_signed=False)
    before = mac.seen()
    assert mac.install() == 1
    assert mac.heard.of(Outcome.FAIL)["firewall"].hint.startswith(
        "sudo /usr/libexec/ApplicationFirewall/socketfilterfw"
    )
    assert (mac.heard.asked, mac.heard.taken(), mac.seen()) == ([], [], before)


def test_dry_run_names_the_place(mac):
    """Before Tailscale is there a dry run shows what will be asked with a name in the address's place."""
    lines = list(Prove(Facts(mac.machine("linux"), load({}, {"HOME": "/nowhere"}), options=Options())).shown())
    assert lines[0] == "$ curl http://TAILSCALE-ADDRESS:11434/api/version"


# --- a real environment -----------------------------------------------------------------------------------------------

UNINSTALL = """
import dataclasses, sys
from proxy.manage.install import uninstall
from proxy.manage.machine.machine import Machine
from proxy.terminal.printer import Printer
machine = dataclasses.replace(Machine.here(), platform="darwin")
sys.exit(uninstall.uninstall(uninstall.Uninstaller(machine), Printer(), yes=True).code)
"""


def registry_answers():
    """Return whether pip can download packages from its index."""
    asks = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--no-deps"]
    try:
        done = subprocess.run([*asks, "--ignore-installed", "httptools"], capture_output=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@pytest.mark.timeout(600)
def test_real_environment(mac):
    """With real packages: a wheel and what is locked, which serves, and can remove itself while it runs."""
    if not registry_answers():
        pytest.skip("pip gets no packages here: the environment can't be built for real")
    port, _ = mac.on_loopback()
    # Where the settings are looked for when this isn't macOS.
    (mac.home / ".config").symlink_to("Library/Application Support")
    assert mac.install(builder=environment.build, seconds=60.0) == 0, mac.heard
    assert asked(port, "GET", "/v1/models")[0] == 200
    machine = mac.machine()
    version = machine.run(machine.link, "--version")
    assert version.out == f"remote-ollama-proxy {__version__}\n", version
    environ = {**os.environ, **mac.environ}
    (folder,) = machine.versions.iterdir()
    listed = subprocess.run([folder / "bin/python", "-m", "pip", "list"], capture_output=True, text=True, check=True)
    assert "pytest" not in listed.stdout
    assert str(ROOT) not in listed.stdout
    mac.install(builder=environment.build)
    assert mac.heard.taken() == [Prove.title]
    command = [folder / "bin/python", "-I", "-c", UNINSTALL]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed {machine.versions}" in done.stdout
    assert not machine.versions.exists()
    until(lambda: mac.job(PROXY) is None)


RULED_OUT = {
    "not_named": ([{"who": ["tag:a"], "models": ["*"]}], True, Outcome.PASS),
    "named": ([{"who": ["self"], "models": ["*"]}], True, Outcome.FAIL),
    "no_rules": ([], True, Outcome.FAIL),
    "not_named_and_served": ([{"who": ["tag:a"], "models": ["*"]}], False, Outcome.FAIL),
    "named_and_served": ([{"who": ["self"], "models": ["*"]}], False, Outcome.PASS),
}


@pytest.mark.parametrize(("rules", "refused", "outcome"), RULED_OUT.values(), ids=RULED_OUT)
async def test_access_rules_are_expected_to_refuse_the_mac(rules, refused, outcome, mac, upstream, tmp_path):
    """The Mac is judged like anyone: its refusal is the proof if no rule names it, and a failure if one does."""
    config = tmp_path / "config.toml"
    config.write_text(
        "".join(f"[[access]]\nwho = {each['who']}\nmodels = {each['models']}\n" for each in rules).replace("'", '"')
    )
    text = b'{"error":"No rule of `access` on the server names this machine itself"}'
    served = b'HTTP/1.1 200 OK\r\nx-request-id: a\r\nContent-Length: 15\r\n\r\n{"version":"1"}'
    refusal = b"HTTP/1.1 403 Forbidden\r\nx-request-id: a\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
    upstream.answers(refusal if refused else served)
    found = await findings(mac.machine(), port=upstream.port, config=str(config))
    assert found["an allowed request"].outcome is outcome
