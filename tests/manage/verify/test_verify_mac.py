"""What verify sees of the machine around the proxy, as a whole."""

from __future__ import annotations

import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from proxy import __version__
from proxy.manage.facts.facts import Facts
from proxy.manage.findings.table import GROUPS, When, timed
from proxy.manage.findings.table import PROXY as PROXY_GROUP
from proxy.manage.machine.launchd import OLLAMA, PROXY
from proxy.manage.verify import access_log
from proxy.tailnet.localapi import Places
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.finding import Outcome
from tests.support.mac.fake_mac import Mac
from tests.support.mac.installed_mac import ADDRESS, ADDRESS6, LAN, PIDS, PORT, wrong
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parent.parent.parent.parent
NO_TAILSCALE = Tailscale(Places(sockets=(), app="/nowhere", tools=(), path="", platform="linux"))


def test_all_is_well(installed):
    """On a healthy Mac nothing fails, nothing is left out, and each check is shown with its time."""
    found = installed.before()
    assert wrong(finding for _, finding, _ in found) == []
    assert list(dict.fromkeys(group for group, _, _ in found)) == ["Service status", "Security", "Network", "Proxy"]
    assert all(seconds >= 0 for _, _, seconds in found)
    details = {finding.name: finding.detail for _, finding, _ in found}
    assert details["proxy agent"] == f"{PROXY} is loaded and runs (pid {PIDS['proxy']})"
    assert details["Ollama HTTP"] == f"Ollama 0.32.15 answers at http://127.0.0.1:{PORT}"
    assert details["proxy version"] == f"{__version__} runs, as installed"
    assert details["Tailscale address"] == f"up: {ADDRESS}, {ADDRESS6} (mac.tail1234.ts.net)"
    assert details["Ollama directly"] == f"can't be reached at {LAN}, {ADDRESS}, {ADDRESS6}, port {PORT}"
    assert details["binding"] == f"exactly as its settings say: {ADDRESS}, {ADDRESS6}, port {PORT}"
    assert details["firewall"] == "it is off"


def test_linux_without_tools(installed):
    """Without launchctl, lsof and Tailscale it is said of each thing that it can't be seen, and the rest is asked."""
    installed.environ |= {"PATH": ""}
    installed.network.at = {("127.0.0.1", PORT): installed.network.ollama, ("127.0.0.1", 8080): installed.network.proxy}
    for label in (PROXY, OLLAMA):
        installed.unload(label)
    given = {"listen": "127.0.0.1", "port": "8080", "access_log": str(installed.logs / "access.log")}
    facts = Facts.of_services(installed.machine("linux"), given, tailscale=NO_TAILSCALE, ask=installed.network.ask)
    found = list(timed(facts, When.VERIFY))
    no_lsof, no_launchctl = "there is no lsof, so the owner of a port is unknown", "Linux has no launchctl"
    left_out = [
        ("proxy agent", no_launchctl),
        ("Ollama agent", no_launchctl),
        ("proxy process", no_lsof),
        ("Ollama process", no_lsof),
        ("proxy port", no_lsof),
        ("Ollama port", no_lsof),
        ("proxy version", "no diagnostics log says which version runs"),
        ("diagnostics log file", "it goes to a standard stream, not to a file"),
        ("proxy plist", "you have no agent com.remote-ollama-proxy"),
        ("Ollama plist", "you have no agent com.ollama"),
        ("settings file", f"there is no {installed.home}/.config/remote-ollama-proxy/config.toml"),
        ("OLLAMA_HOST of the agent", "Ollama isn't one of our agents"),
        ("OLLAMA_HOST of the login session", no_launchctl),
        ("OLLAMA_ORIGINS", "the environment of Ollama can't be seen"),
        ("OLLAMA_DEBUG_LOG_REQUESTS", "the environment of Ollama can't be seen"),
        ("OLLAMA_DEBUG", "the environment of Ollama can't be seen"),
        ("Ollama's address", no_lsof),
        ("Tailscale address", "the proxy listens on 127.0.0.1, and isn't set to listen on Tailscale's address"),
        ("tailscale serve", "its rules can't be read: Tailscale doesn't answer"),
        ("Ollama directly", "no address of this machine beyond loopback was found"),
        ("firewall", "the application firewall is part of macOS, and this is Linux"),
        ("binding", no_lsof),
        ("reload", "the start time of the proxy is unknown"),
    ]
    skips = [(name, detail) for name, outcome, detail, _ in wrong(finding for _, finding, _ in found)]
    assert skips == left_out
    assert {outcome for _, outcome, *_ in wrong(finding for _, finding, _ in found)} == {Outcome.SKIP}


def asked(port, method, path):
    """Return the proxy's id of a request."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.headers["x-request-id"]
    except urllib.error.HTTPError as error:
        return error.headers["x-request-id"]


@pytest.mark.skipif(shutil.which("lsof") is None or shutil.which("ps") is None, reason="no lsof or no ps here")
def test_real_processes(tmp_path):
    """After an install with real processes all is well, and each request has its line in the access log."""
    mac = Mac(tmp_path, silent=False)
    try:
        port, upstream = mac.on_loopback()
        assert mac.install() == 0, mac.heard
        machine, flags = mac.machine(), {"config": str(mac.machine().config)}
        flags["access_log"] = str(machine.logs / "access.log")  # where this system wouldn't look for them
        facts = Facts.of_services(machine, flags, tailscale=NO_TAILSCALE)
        found = [finding for _, finding, _ in timed(facts, When.VERIFY)]
        assert [name for name, *_ in wrong(found)] == ["Tailscale address", "tailscale serve", "Ollama directly"]
        details = {finding.name: finding.detail for finding in found}
        assert details["binding"] == f"exactly as its settings say: 127.0.0.1, port {port}"
        assert details["Ollama's address"] == f"loopback only: 127.0.0.1:{upstream}"
        assert details["Ollama's cloud"] == (
            "is off: no model name sends a prompt off this machine; "
            "the proxy refuses what would leave this machine (`local_only`)"
        )
        ids = [asked(port, "GET", "/v1/models"), asked(port, "POST", "/api/pull")]
        assert wrong(access_log.access_log(facts.settings.access_log, ids)) == []
        found = access_log.access_log(facts.settings.access_log, [*ids, "ffff"], seconds=0)
        ((name, outcome, detail, _),) = wrong(found)
        assert (name, outcome) == ("access log", Outcome.FAIL)
        assert "1 of 3 requests have no line" in detail
    finally:
        mac.close()


def test_page_has_every_check(installed):
    """docs/verify-mac.md has a row for each thing that is found, in the table of its group."""
    installed.settings("allow_any_address = true\nallow_any_upstream = true")
    names = [*((group, finding.name) for group, finding, _ in installed.before())]
    names += [
        (PROXY_GROUP, finding.name) for finding in access_log.access_log(installed.seen_as().settings.access_log, [])
    ]
    page = (ROOT / "docs" / "verify-mac.md").read_text()
    told = []
    for title in GROUPS:
        rows = re.findall(r"^\| (`.*?) \|", page.partition(f"## {title}\n")[2].partition("\n## ")[0], re.MULTILINE)
        told += [(title, name) for row in rows for name in re.findall(r"`([^`]+)`", row)]
    only_when_wrong = {
        "tailscale",
        "tailscale shields",
        "tailscale key",
        "tailscale health",
        "environment",
        "descriptors",
        "diagnostics log",
        "access log keys",
        "serve port",
        "drain_timeout",
        "native_options",
        "models",
        "ollama log",
        "Ollama's answers",
    }
    expected = [each for each in dict.fromkeys(told) if each[1] not in only_when_wrong]
    assert sorted(set(names)) == sorted(expected)
