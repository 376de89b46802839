"""The checks before serving: each finding, and its text."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from proxy.manage.facts import facts as facts_module
from proxy.manage.facts.facts import Facts
from proxy.manage.facts.listeners import Listener
from proxy.manage.findings import addresses, files, firewall, ollama, settings
from proxy.manage.findings.table import When, findings
from proxy.manage.machine.machine import Machine
from proxy.settings.settings import SettingsError, load
from proxy.tailnet.concerns import Topic
from proxy.tailnet.serve_rules import Kind, Rule
from proxy.tailnet.tailscale import Tailnet
from proxy.terminal.finding import Outcome
from tests.fakes.scripted_tailscale import ScriptedTailscale
from tests.support.mac.fake_mac import Mac
from tests.support.patience import PATIENCE
from tests.support.proxy_process import free_port


def loaded(**flags):
    """Return settings of nothing but `flags`."""
    return load(flags, {"HOME": "/nowhere"})


def facts(machine=None, tailscale=None, **flags):
    """Return the facts of what is about to serve, with settings of nothing but `flags`."""
    return Facts(machine or Machine.here(), loaded(**flags), tailscale=tailscale, python=sys.executable)


def only(findings):
    """Return the one finding there is."""
    (finding,) = findings
    return finding


@pytest.fixture
def answering():
    """Return a function that starts a server with one answer for one client, and returns its URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    served: list[threading.Thread] = []

    def start(answer: bytes | None) -> str:
        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(4096)
                if answer is None:
                    client.recv(1)  # until the client gives up
                else:
                    client.sendall(answer)

        served.append(threading.Thread(target=serve))
        served[-1].start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for thread in served:
        thread.join(PATIENCE)
    listening.close()


def version_answer(content: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode()


# --- upstream ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "outcome", "detail"),
    [
        pytest.param("0.32.15", Outcome.PASS, "Ollama 0.32.15 answers at", id="new"),
        pytest.param("0.14.0", Outcome.PASS, "Ollama 0.14.0", id="first_with_messages"),
        pytest.param("0.14.0-rc2", Outcome.PASS, "Ollama 0.14.0-rc2", id="suffix_is_cut"),
        pytest.param("0.0.0", Outcome.PASS, "Ollama 0.0.0", id="from_source_is_newest"),
        pytest.param("1.0.0", Outcome.PASS, "Ollama 1.0.0", id="major"),
        pytest.param("0.13.5", Outcome.WARN, "too old for /v1/messages", id="before_messages"),
        pytest.param("0.13.2", Outcome.WARN, "too old for /v1/messages and /v1/responses", id="before_responses"),
        pytest.param("0.5.0", Outcome.WARN, "too old for /v1/messages", id="compared_as_numbers"),
        pytest.param("nightly", Outcome.WARN, "its version can't be compared", id="no_number"),
        pytest.param("\\u001b[31m", Outcome.WARN, r"Ollama \x1b[31m", id="escaped"),
    ],
)
def test_upstream_version(version, outcome, detail, answering):
    """Ollama's version is shown. One that lacks an open route is a warning."""
    url = answering(version_answer(f'{{"version":"{version}"}}'))
    finding = only(ollama.answers(facts(upstream=url)))
    assert finding.outcome is outcome
    assert detail in finding.detail
    assert bool(finding.hint) is (outcome is not Outcome.PASS)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        pytest.param(version_answer("[]"), "answers, but not like Ollama", id="other_json"),
        pytest.param(version_answer("hello"), "answers, but not like Ollama", id="no_json"),
        pytest.param(b"SSH-2.0-x\r\n", "does not answer: BadStatusLine", id="no_http"),
        pytest.param(b"", "does not answer", id="closed"),
        pytest.param(None, "does not answer", id="silent"),
    ],
)
def test_upstream_that_is_not_ollama(answer, detail, answering, monkeypatch):
    """Another program there, or one that doesn't answer in time, is distinguished from Ollama."""
    monkeypatch.setattr(facts_module, "ANSWER_TIME", 0.2 if answer is None else PATIENCE)
    finding = only(ollama.answers(facts(upstream=answering(answer))))
    assert finding.outcome is Outcome.FAIL
    assert detail in finding.detail
    assert finding.hint


def test_upstream_that_does_not_run():
    """Ollama may be started after the proxy: that it doesn't run is a warning, with how to start it."""
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    flags = {"listen": "127.0.0.1", "port": "1", "upstream": f"http://127.0.0.1:{port}", "access_log": "-"}
    finding = next(each for each in findings(facts(**flags), When.CHECK) if each.name == "Ollama HTTP")
    assert (finding.outcome, finding.hint) == (Outcome.WARN, "ollama serve")
    assert finding.detail.endswith("does not answer: Connection refused")


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_address_in_use_and_free(tmp_path, address, shown):
    """An address that something listens on is a warning, as it may be a proxy that runs; a free one is fine."""
    toolless = replace(Machine.here(), path="", root=tmp_path)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as other:
        port = other.getsockname()[1]
        finding = only(addresses.bindable(facts(toolless, listen=address, port=str(port))))
        assert (finding.outcome, finding.hint) == (Outcome.WARN, f"sudo lsof -nP -iTCP:{port} -sTCP:LISTEN")
        assert finding.detail.startswith(f"{shown}:{port} is in use")
    finding = only(addresses.bindable(facts(toolless, listen=address, port=str(port))))
    assert (finding.outcome, finding.detail) == (Outcome.PASS, f"{shown}:{port} would be bound")


def test_address_of_another_machine():
    """An address that this machine hasn't got is a warning: an interface may come up later."""
    finding = only(addresses.bindable(facts(listen="100.64.255.254")))
    assert finding.outcome is Outcome.WARN
    assert finding.detail == "100.64.255.254:11434 is currently not an address of this machine"


def found(tailscale, **flags):
    """Return each finding for addresses, without its hint, which there always is but for a pass."""
    of_addresses = {"address", "Tailscale address", "serve port", *(topic.value for topic in Topic), "tailscale serve"}
    machine = replace(Machine.here(), platform="linux")
    given = {"upstream": "http://127.0.0.1:1", "access_log": "-", **flags}
    told = [each for each in findings(facts(machine, tailscale, **given), When.CHECK) if each.name in of_addresses]
    assert all(bool(each.hint) is (each.outcome in (Outcome.WARN, Outcome.FAIL)) for each in told)
    return [(each.name, each.outcome, each.detail) for each in told if "no rule leads past" not in each.detail]


def test_every_address_is_told():
    """Each address in `listen` has a finding of its own, and so has each that Tailscale gives."""
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    up = ScriptedTailscale(Tailnet("Running", ("127.0.0.1", "::1"), tun=True))
    assert found(up, listen="tailscale,100.64.255.254", port=str(port)) == [
        ("address", Outcome.PASS, f"127.0.0.1:{port} would be bound"),
        ("address", Outcome.PASS, f"[::1]:{port} would be bound"),
        ("address", Outcome.WARN, f"100.64.255.254:{port} is currently not an address of this machine"),
    ]


@pytest.mark.parametrize(
    ("tun", "outcome"),
    [
        pytest.param(None, Outcome.WARN, id="waited_for"),
        pytest.param(True, Outcome.WARN, id="stopped"),
        pytest.param(False, Outcome.FAIL, id="userspace"),
    ],
)
def test_tailscale_without_an_address(tun, outcome):
    """The proxy would wait for an address, a warning; userspace networking leads past it, and is an error."""
    down = ScriptedTailscale(Tailnet("Stopped", tun=tun, problem="Tailscale is stopped", hint="tailscale up"))
    assert found(down, listen="tailscale") == [("Tailscale address", outcome, "Tailscale is stopped")]


def test_rules_that_lead_past_the_proxy():
    """A rule of serve or funnel that leads to Ollama is an error; that they can't be known is said."""
    nothing = Tailnet("Stopped", problem="Tailscale is stopped", hint="tailscale up")
    ruled = ScriptedTailscale(nothing, (Rule("leads past this proxy", "tailscale serve reset"),))
    assert found(ruled, listen="tailscale")[1:] == [("tailscale serve", Outcome.FAIL, "leads past this proxy")]
    unread = "its rules can't be read: Tailscale doesn't answer"
    assert found(ScriptedTailscale(nothing, None), listen="tailscale")[1:] == [
        ("tailscale serve", Outcome.SKIP, unread)
    ]


UP = Tailnet("Running", ("127.0.0.1",), tun=True)


@pytest.mark.parametrize(
    ("tailnet", "more", "name", "words"),
    [
        pytest.param(UP, {"shields": True}, "tailscale shields", "blocks all other devices", id="shields_up"),
        pytest.param(replace(UP, health=("clock is wrong",)), {}, "tailscale health", "clock is wrong", id="health"),
        pytest.param(
            replace(UP, key_expiry=datetime.now(UTC) + timedelta(days=29)), {}, "tailscale key", "expires", id="key"
        ),
        pytest.param(replace(UP, silence="does not answer", hint="x"), {}, "tailscale", "does not answer", id="silent"),
    ],
)
def test_what_is_amiss_with_tailscale(tailnet, more, name, words):
    """What keeps devices out, or will soon, is a warning: the proxy would start all the same."""
    ((its_name, outcome, detail),) = found(ScriptedTailscale(tailnet, **more), listen="tailscale")[1:]
    assert (its_name, outcome) == (name, Outcome.WARN)
    assert words in detail


@pytest.mark.parametrize("listen", ["tailscale", "127.0.0.1"])
def test_serve_port(listen):
    """The port for serve is tried like an address, and whether anything is served there is said."""
    blind = ScriptedTailscale(UP, (Rule("passes on bytes", "tailscale serve --tcp=443 off", Kind.BLIND),))
    port, serve_port = free_port(), free_port()
    told = found(blind, listen=listen, port=str(port), serve_port=str(serve_port))
    assert ("address", Outcome.PASS, f"127.0.0.1:{serve_port} would be bound") in told
    assert told[-1] == ("serve port", Outcome.FAIL, "nothing is served on serve_port: passes on bytes")


def test_ipv6_that_only_tailscale_reports():
    """An address that this machine lacks isn't tried, and is no fault."""
    both = Tailnet("Running", ("127.0.0.1", "fd7a:115c:a1e0::1"), tun=True)
    lacks, tried = found(ScriptedTailscale(both, held=("127.0.0.1",)), listen="tailscale", port=str(free_port()))
    assert lacks[:2] == ("Tailscale address", Outcome.SKIP)
    assert tried[2].startswith("127.0.0.1:")


def test_upstream_on_the_address_of_tailscale():
    """An upstream where the proxy itself would listen is an error."""
    told = found(ScriptedTailscale(UP), listen="tailscale", upstream="http://127.0.0.1:11434")
    assert told == [("address", Outcome.FAIL, "upstream is an address on which the proxy itself would listen")]


# --- the machine ------------------------------------------------------------------------------------------------------


def test_parser():
    """Without aiohttp's C parser nothing is served."""
    assert only(settings.parser(facts())).outcome is Outcome.PASS
    finding = only(settings.parser(facts(), c_parser=False))
    assert finding.outcome is Outcome.FAIL
    assert "AIOHTTP_NO_EXTENSIONS" in finding.hint


@pytest.mark.parametrize(
    ("limits", "outcome", "detail"),
    [
        pytest.param((264, 264), Outcome.PASS, "264 open files for 100 connections are allowed", id="enough"),
        pytest.param((256, 264), Outcome.PASS, "100 connections are available (now 256)", id="raised"),
        pytest.param((256, -1), Outcome.PASS, "are available (now 256)", id="no_hard_limit"),
        pytest.param((-1, -1), Outcome.PASS, "are allowed", id="no_limit"),
        pytest.param((256, 256), Outcome.WARN, "only 96 connections instead of 100", id="short"),
        pytest.param((10, 10), Outcome.WARN, "only 1 connections instead of 100", id="very_short"),
    ],
)
def test_descriptors(limits, outcome, detail):
    """Two open files per connection must be available. Otherwise fewer connections are served, and it says how many."""
    finding = settings.enough_files(100, limits)
    assert finding.outcome is outcome
    assert detail in finding.detail


def test_logs_that_can_be_written(tmp_path):
    """A log may be standard output, a file, or one that isn't there yet; nothing is made by looking."""
    assert only(files.writable_logs(facts(access_log="-"))).detail == "standard output"
    (tmp_path / "old").write_text("")
    assert only(files.writable_logs(facts(access_log=str(tmp_path / "old")))).outcome is Outcome.PASS
    new = tmp_path / "folder" / "new"
    found = list(files.writable_logs(facts(access_log="-", diagnostics_log=str(new))))
    assert [finding.name for finding in found] == ["access log", "diagnostics log"]
    assert (found[1].outcome, found[1].detail) == (Outcome.PASS, f"{new} will be made")
    assert not new.parent.exists()


def test_logs_that_can_not_be_written(tmp_path):
    """A folder in a log's place, a file in its folder's, and a symbolic link are errors."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path, tmp_path / "file" / "log", tmp_path / "link"):
        finding = only(files.writable_logs(facts(access_log=str(path))))
        assert finding.outcome is Outcome.FAIL, path
        assert str(path) in finding.detail
        assert finding.hint.startswith("ls -l")


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_told_with_their_sources():
    """One finding shows every option with value and source; a mistyped variable has a warning."""
    with_typo = load({"max_body": "5MiB"}, {"HOME": "/nowhere", "PROXY_PROT": "1"})
    told, typo = settings.effective(Facts(Machine.here(), with_typo))
    assert "max_body = 5MiB (flag --max-body)" in told.detail
    assert "port = 11434 (default)" in told.detail
    assert (typo.name, typo.outcome) == ("environment", Outcome.WARN)
    assert "PROXY_PROT sets nothing; did you mean PROXY_PORT?" in typo.detail


@pytest.mark.parametrize(
    ("entries", "warned"), [("null", True), ("https://a.org,NULL", True), ("https://null.org", False), ("", False)]
)
def test_null_among_the_origins_is_warned_of(entries, warned):
    """An owner who allows `null` reads that every web page can use the proxy then, and what takes it back."""
    told = [(each.name, each.outcome, each.hint) for each in settings.null_origin(facts(allowed_origins=entries))]
    hint = 'take "null" out of `allowed_origins`, unless an app needs it'
    assert told == [("allowed_origins", Outcome.WARN, hint)] * warned


def test_allowlist_is_told_whole():
    """Every open route is shown, with the entry that opened it."""
    rows = settings.rows(loaded(allow="POST /api/chat"))
    assert len(rows) == 9
    assert ("GET", "/api/tags", "native", "always") in rows
    assert ("POST", "/api/chat", "native", "allow (flag --allow)") in rows


def test_check_runs_all(monkeypatch):
    """`--check` looks at what a start needs, and not at Tailscale if it isn't to listen there."""
    monkeypatch.setattr(facts_module, "ANSWER_TIME", 0.2)
    machine = replace(Machine.here(), platform="linux")
    told = findings(facts(machine, listen="127.0.0.1", port="1", access_log="-"), When.CHECK)
    names = list(dict.fromkeys(finding.name for finding in told))
    assert names == ["settings", "allowlist", "access", "Ollama HTTP", "address", "parser", "descriptors", "access log"]


def test_mistakes_are_findings():
    """Each mistake in the settings is a finding that failed."""
    with pytest.raises(SettingsError) as caught:
        load({"port": "0", "max_body": "x"}, {"HOME": "/nowhere"})
    told = settings.mistakes(caught.value)
    assert [(finding.name, finding.outcome) for finding in told] == [("settings", Outcome.FAIL)] * 2
    assert told[0].detail == 'port = "0" (flag --port): is out of range: 1 to 65535'


IN_USE = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
PROXY = Listener(71, "127.0.0.1", 11434, "python -m proxy", "/Users/a b/bin/python")


@pytest.mark.parametrize(
    ("seen", "outcome", "words"),
    [
        pytest.param((PROXY,), Outcome.WARN, "in use by python (pid 71)", id="seen"),
        pytest.param((replace(PROXY, address="*"),), Outcome.WARN, "in use by python (pid 71)", id="seen_everywhere"),
        pytest.param((), Outcome.FAIL, "by no process of yours", id="another_users"),
        pytest.param((replace(PROXY, port=1),), Outcome.FAIL, "by no process of yours", id="seen_elsewhere_only"),
        pytest.param(None, Outcome.WARN, "by a running proxy or another program", id="no_lsof"),
    ],
)
def test_who_has_the_address(seen, outcome, words):
    """An address in use is shown with the process that has it, unless it is another user's."""
    facts_ = facts(replace(Machine.here(), bind=lambda *_: IN_USE), listen="127.0.0.1", upstream="http://127.0.0.1:1")
    facts_.listening = seen
    finding = only(addresses.bindable(facts_))
    assert (finding.outcome, finding.hint) == (outcome, "sudo lsof -nP -iTCP:11434 -sTCP:LISTEN")
    assert words in finding.detail


@pytest.mark.parametrize(
    ("listen", "outcome"),
    [
        pytest.param("tailscale", Outcome.FAIL, id="tailscale"),
        pytest.param("tailscale,127.0.0.1", Outcome.FAIL, id="tailscale_too"),
        pytest.param("127.0.0.1", None, id="loopback_only"),
    ],
)
def test_firewall_of_a_mac(tmp_path, listen, outcome):
    """On a Mac the firewall is asked about the Python that runs the check, unless it listens on loopback only."""
    mac = Mac(tmp_path)
    mac.change(firewall=1, allow_signed=False)
    told = [each.outcome for each in firewall.check(facts(mac.machine(), listen=listen, port="21500"))]
    assert told == ([] if outcome is None else [outcome])
    mac.close()


@pytest.mark.parametrize(
    ("number", "outcome", "detail"),
    [
        pytest.param(errno.EACCES, Outcome.FAIL, "can't be bound by this user", id="privileged_port"),
        pytest.param(errno.ENOBUFS, Outcome.FAIL, "can't be bound: ", id="anything_else"),
    ],
)
def test_address_that_can_not_be_bound(number, outcome, detail):
    """A problem that won't pass by itself is an error."""
    machine = replace(Machine.here(), bind=lambda *_: OSError(number, os.strerror(number)))
    finding = only(addresses.bindable(facts(machine, listen="127.0.0.1", port="80")))
    assert finding.outcome is outcome
    assert detail in finding.detail
    assert finding.hint
