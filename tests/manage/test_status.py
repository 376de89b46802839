"""`status`: what it shows about the services, what counts as wrong, and what can't be seen."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sys
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from proxy import __version__
from proxy.manage.machine.launchd import OLLAMA, PROXY, Launchd
from proxy.manage.machine.plists import render
from proxy.manage.machine.processes import Process
from proxy.manage.status import print_status, status
from proxy.simulated_ollama import DEFAULT_MODELS, REMOTE_STUB
from proxy.tailnet.serve_rules import Kind, Rule
from proxy.tailnet.tailscale import Tailnet
from proxy.terminal.printer import Printer
from tests.fakes.scripted_tailscale import STOPPED, ScriptedTailscale
from tests.support.mac.fake_launchd import Agents, until
from tests.support.ports import free_ports
from tests.support.threaded_ollama import threaded

ROOT = Path(__file__).parent.parent.parent
ADDRESS = "100.101.102.103"


UP = Tailnet("Running", (ADDRESS, "fd7a:115c:a1e0::1"), tun=True)


class Mac(Agents):
    """A Mac whose listeners and processes are what a test says."""

    def __init__(self, folder):
        super().__init__(folder)
        self.listening = folder / "listening"
        self.programs = {}
        self.command("lsof", f"cat '{self.listening}'; test -s '{self.listening}'")
        self.logs = self.home / "Library" / "Logs" / "remote-ollama-proxy"
        self.logs.mkdir(parents=True)
        self.environ |= {"PROXY_ACCESS_LOG": str(self.logs / "access.log")}
        self.tailscale = ScriptedTailscale(UP)
        self.listens()

    def listens(self, *entries):
        """Have (pid, program, "address:port") be what lsof shows."""
        self.listening.write_text("".join(f"p{pid}\nf5\nn{where}\n" for pid, _, where in entries))
        for pid, program, _ in entries:
            self.programs[pid] = program

    def process(self, pid):
        """Return what a test has listen as a process that began at a known time."""
        program = self.programs.get(pid, "")
        executable = program.partition(" -")[0].removesuffix(" serve")
        begun = datetime(2026, 11, 23, 20, 51).astimezone().timestamp()
        return Process(pid, executable=executable, command=program, begun=begun)

    def machine(self, platform="darwin"):
        """Return this Mac."""
        return replace(super().machine(platform), process=self.process, processes=lambda: ())

    def install(self, upstream, *, start=True, **variables):
        """Write both plists, and load them; return the pids."""
        more = {"PROXY_UPSTREAM": upstream, "PROXY_ACCESS_LOG": str(self.logs / "access.log"), **variables}
        paths = [self.plist(PROXY, EnvironmentVariables=more, ExitTimeOut=40), self.plist(OLLAMA)]
        if not start:
            return None
        jobs = Launchd(os.getuid(), self.machine().run)
        for path in paths:
            jobs.bootstrap(path)
        return [until(lambda label=label: (self.job(label) or {}).get("pid")) for label in (PROXY, OLLAMA)]

    def look(self, **flags):
        """Return the status."""
        return status(self.machine(), flags, self.tailscale)


@pytest.fixture
def mac(tmp_path):
    """Give a Mac whose processes end with the test."""
    made = Mac(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ollama():
    """Give a simulated Ollama that answers."""
    with threaded() as started:
        yield started


def found(told, outcome):
    """Return what was found with an outcome: (name, detail, hint)."""
    return [(each.name, each.detail, each.hint) for each in told.findings if each.outcome == outcome]


def port_of(ollama):
    return ollama.url.rpartition(":")[2]


# --- well -------------------------------------------------------------------------------------------------------------


def test_all_is_well(mac, ollama):
    """Two running services are shown with their start, process, place and version."""
    proxy, server = mac.install(ollama.url, PROXY_DIAGNOSTICS_LOG=str(mac.logs / "diagnostics.log"))
    mac.listens(
        (proxy, "/p/bin/python -I -m proxy", f"{ADDRESS}:11434"),
        (proxy, "/p/bin/python -I -m proxy", "[fd7a:115c:a1e0::1]:11434"),
        (server, "/o/ollama serve", f"127.0.0.1:{port_of(ollama)}"),
    )
    (mac.logs / "diagnostics.log").write_text(
        '{"event":"listening","version":"0.0.9"}\n{"event":"listening","version":"0.1.0"}\n{"event":"reloaded"}\n'
    )
    (mac.logs / "access.log").touch()
    urllib.request.urlopen(f"{ollama.url}/api/generate", b'{"model":"tiny"}', 5).close()
    told = mac.look()
    assert (found(told, "fail"), found(told, "warn"), found(told, "skip")) == ([], [], [])
    assert told.well
    assert ("keep awake", "on: the Mac is kept awake while a model answers; none is answering now", "") in found(
        told, "pass"
    )
    assert (told.proxy.installed, told.proxy.loaded, told.proxy.running, told.proxy.disabled) == (
        True,
        True,
        True,
        False,
    )
    assert (told.proxy.pid, told.proxy.version, told.proxy.refusals) == (proxy, "0.1.0", ())
    assert told.proxy.since.startswith("2026-11-23T20:51:00")
    assert told.proxy.addresses == (f"{ADDRESS}:11434", "[fd7a:115c:a1e0::1]:11434")
    assert (told.ollama.pid, told.ollama.version) == (server, "0.32.15")
    assert told.ollama.addresses == (f"127.0.0.1:{port_of(ollama)}",)
    (model,) = told.ollama.models
    assert model["name"].startswith("tiny")
    assert set(model) == {"name", "size", "expires_at"}


def test_null_among_the_origins(mac, ollama):
    """A proxy that serves `Origin: null` serves every web page, and `status` warns of it."""
    mac.install(ollama.url, start=False, PROXY_ALLOWED_ORIGINS="null")
    told = mac.look()
    assert [name for name, detail, _ in found(told, "warn") if "any web page" in detail] == ["allowed_origins"]


def test_last_refusals(mac, ollama):
    """The newest refusals come first, from the file before the last rotation too; lines that are none don't matter."""
    mac.install(ollama.url, start=False)

    def line(number, verdict="refused"):
        return json.dumps({"time": f"t{number}", "verdict": verdict, "reason": "path_not_served", "peer": "100.64.0.9"})

    (mac.logs / "access.log.1").write_text("\n".join(map(line, range(1, 7))) + "\n")
    (mac.logs / "access.log").write_text(f"{line(7)}\n{line(8, 'allowed')}\n[1]\nhalf a li")
    told = mac.look()
    assert [each["time"] for each in told.proxy.refusals] == ["t7", "t6", "t5", "t4", "t3"]


def test_only_the_end_of_a_log_is_read(mac, ollama):
    """A log of many megabytes is not read whole."""
    mac.install(ollama.url, start=False)
    early = json.dumps({"time": "early", "verdict": "refused"})
    filler = json.dumps({"time": "x" * 1000, "verdict": "allowed"}) + "\n"
    late = json.dumps({"time": "late", "verdict": "refused"})
    (mac.logs / "access.log").write_text(f"{early}\n{filler * 400}{late}\n")
    assert [each["time"] for each in mac.look().proxy.refusals] == ["late"]


# --- wrong ------------------------------------------------------------------------------------------------------------


def test_nothing_installed(mac):
    """If nothing is installed and nothing answers, both are reported, with what helps."""
    told = mac.look(upstream="http://127.0.0.1:1")
    assert not told.well
    assert found(told, "fail") == [
        ("proxy agent", "is not installed", "python -m proxy install"),
        ("proxy port", "nothing listens on port 11434", "python -m proxy install"),
        ("Ollama port", "nothing listens on port 1", "ollama serve"),
        ("Ollama HTTP", "http://127.0.0.1:1 does not answer: Connection refused", "ollama serve"),
    ]
    assert "Ollama agent" in [name for name, *_ in found(told, "skip")]


def test_down_and_disabled(mac):
    """A service that isn't loaded, or is disabled, is shown with the command that starts it."""
    mac.install("http://127.0.0.1:1", start=False)
    Launchd(os.getuid(), mac.machine().run).disable(OLLAMA)
    told = mac.look()
    fails = found(told, "fail")
    assert ("proxy agent", "is not loaded", "python -m proxy start proxy") in fails
    assert ("Ollama agent", "is disabled", "python -m proxy enable ollama") in fails
    assert (told.proxy.loaded, told.proxy.running, told.ollama.disabled) == (False, False, True)


def test_ends_again_and_again(mac, ollama):
    """A service that ends at each start is shown with its exit code and where the reason is."""
    mac.knobs(throttle=100)
    log = mac.logs / "launchd.log"
    path = mac.plist(PROXY, ("/bin/sh", "-c", "exit 2"), StandardErrorPath=str(log))
    Launchd(os.getuid(), mac.machine().run).bootstrap(path)
    until(lambda: mac.job(PROXY).get("ended"))
    told = mac.look(upstream=ollama.url)
    detail = "is loaded, but does not run (spawn scheduled): it ended with exit code 2"
    assert ("proxy agent", detail, f"tail -n 20 '{log}'") in found(told, "fail")
    assert told.proxy.last_exit == 2


def test_waits_for_tailscale(mac, ollama):
    """A proxy that runs and listens nowhere isn't well; what keeps Tailscale from being up is said, once."""
    _, server = mac.install(ollama.url)
    mac.listens((server, "/o/ollama serve", f"127.0.0.1:{port_of(ollama)}"))
    mac.tailscale.tailnet = STOPPED
    told = mac.look()
    assert found(told, "fail") == [
        ("binding", "it listens nowhere: Tailscale is stopped", "tailscale up"),
        ("proxy port", "nothing listens on port 11434", "python -m proxy status"),
    ]
    assert (told.well, told.proxy.running) == (False, True)


def listening(mac, ollama):
    """Have the proxy run and listen on its address, next to an Ollama that answers."""
    proxy, server = mac.install(ollama.url)
    mac.listens(
        *[(proxy, "/p/python -m proxy", f"{each}:11434") for each in (ADDRESS, "[fd7a:115c:a1e0::1]")],
        (server, "/o/ollama", f"127.0.0.1:{port_of(ollama)}"),
    )


SILENT = Tailnet("unknown", problem="Tailscale does not answer: not running", hint="open -a Tailscale")
USERSPACE = Tailnet("Running", tun=False, problem="Tailscale runs in userspace networking", hint="restart it")
NO_REACH = f"it still listens on {ADDRESS}, fd7a:115c:a1e0::1, where no device can reach it: "


@pytest.mark.parametrize(
    ("tailscale", "finding"),
    [
        pytest.param(
            ScriptedTailscale(STOPPED), ("binding", f"{NO_REACH}Tailscale is stopped", "tailscale up"), id="stopped"
        ),
        pytest.param(
            ScriptedTailscale(SILENT), ("binding", NO_REACH + SILENT.problem, "open -a Tailscale"), id="no_answer"
        ),
        pytest.param(
            ScriptedTailscale(USERSPACE), ("binding", NO_REACH + USERSPACE.problem, "restart it"), id="userspace"
        ),
        pytest.param(
            ScriptedTailscale(Tailnet("Running", ("100.70.0.9",), tun=True)),
            ("binding", "it doesn't listen on 100.70.0.9, port 11434", "python -m proxy status"),
            id="another_address",
        ),
        pytest.param(
            ScriptedTailscale(UP, (Rule("leads past this proxy", "tailscale serve reset"),)),
            ("tailscale serve", "leads past this proxy", "tailscale serve reset"),
            id="rule_past_the_proxy",
        ),
        pytest.param(
            ScriptedTailscale(UP, (Rule("takes the port", "tailscale serve reset", Kind.TAKEN),)),
            ("tailscale serve", "takes the port", "tailscale serve reset"),
            id="rule_on_its_port",
        ),
        pytest.param(
            ScriptedTailscale(UP, (Rule("passes on bytes", "tailscale serve --tcp=443 off", Kind.BLIND),)),
            ("serve port", "nothing is served on serve_port: passes on bytes", "tailscale serve --tcp=443 off"),
            id="blind_rule_to_serve_port",
        ),
        pytest.param(
            ScriptedTailscale(UP, shields=True),
            (
                "tailscale shields",
                "Tailscale blocks all other devices: its shields are up (`Allow incoming connections` is off in the"
                " app's menu)",
                "tailscale set --shields-up=false",
            ),
            id="shields_up",
        ),
    ],
)
def test_all_seems_well_but_for_tailscale(mac, ollama, tailscale, finding):
    """Both services run and listen: what keeps devices from the proxy, or leads past it, is an error."""
    listening(mac, ollama)
    mac.tailscale = tailscale
    told = mac.look(**({"serve_port": "11435"} if finding[0] == "serve port" else {}))
    assert found(told, "fail") == [finding]
    assert not told.well


@pytest.mark.parametrize(
    ("tailscale", "outcome", "name", "words"),
    [
        pytest.param(
            ScriptedTailscale(replace(UP, health=("clock is wrong",))),
            *("warn", "tailscale health", "Tailscale reports: clock is wrong"),
            id="health",
        ),
        pytest.param(
            ScriptedTailscale(replace(UP, key_expiry=datetime.now(UTC) + timedelta(days=9, hours=1))),
            *("warn", "tailscale key", "in 9 days"),
            id="key_expires",
        ),
        pytest.param(
            ScriptedTailscale(
                replace(UP, source="interface", silence="Tailscale does not answer: hung", hint="start it")
            ),
            *("warn", "tailscale", "Tailscale does not answer: hung. Its interface still has"),
            id="only_the_interface",
        ),
        pytest.param(
            ScriptedTailscale(UP, None), "skip", "tailscale serve", "its rules can't be read", id="rules_unreadable"
        ),
    ],
)
def test_what_is_amiss_with_tailscale(mac, ollama, tailscale, outcome, name, words):
    """What will keep devices out soon, or can't be seen, is said, and makes nothing fail."""
    listening(mac, ollama)
    mac.tailscale = tailscale
    told = mac.look()
    ((its_name, detail, _),) = found(told, outcome)
    assert its_name == name
    assert words in detail
    assert told.well


def test_proxy_in_a_terminal_may_wait(mac, ollama):
    """While Tailscale is down a proxy in a terminal can't be seen: nobody is advised to start a second one."""
    mac.tailscale.tailnet = STOPPED
    told = mac.look(upstream=ollama.url)
    assert ("proxy port", "nothing listens on port 11434: Tailscale is stopped", "tailscale up") in found(told, "fail")
    assert told.proxy.running is None


def test_listens_nowhere(mac, ollama):
    """Where the address was named, its diagnostics are what to look at."""
    log = mac.logs / "diagnostics.log"
    log.touch()
    mac.install(ollama.url, PROXY_LISTEN="127.0.0.1", PROXY_PORT="21500", PROXY_DIAGNOSTICS_LOG=str(log))
    assert found(mac.look(), "fail")[:2] == [
        ("binding", "it doesn't listen on 127.0.0.1, port 21500", "python -m proxy logs --diagnostics"),
        ("proxy port", "nothing listens on port 21500", "python -m proxy logs --diagnostics"),
    ]


def test_port_is_held_by_another(mac, ollama):
    """Who holds the proxy's port instead of it is named."""
    mac.install(ollama.url, start=False)
    mac.listens((77, "/opt/homebrew/bin/haproxy -f x", f"{ADDRESS}:11434"))
    told = mac.look()
    hint = "sudo lsof -nP -iTCP:11434 -sTCP:LISTEN"
    detail = f"{ADDRESS}:11434 is held by haproxy (pid 77), not by the agent"
    assert ("proxy port", detail, hint) in found(told, "fail")


FIREWALL = """case "$1" in
    --getglobalstate) echo "Firewall is enabled. (State = 1)";;
    --getappblocked) echo "The application $2 is VERDICT";;
esac"""


@pytest.mark.parametrize(
    ("verdict", "named"),
    [pytest.param("not part of the firewall", True, id="unlisted"), pytest.param("permitted", False, id="let_in")],
)
def test_firewall_that_keeps_the_proxy_out(mac, ollama, verdict, named):
    """A firewall that keeps the proxy's Python out is wrong, with the command that lets it in; else it is no news."""
    mac.command("socketfilterfw", FIREWALL.replace("VERDICT", verdict))
    mac.install(ollama.url, start=False)
    told = mac.look()
    found_ = [each for each in told.findings if each.name == "firewall"]
    assert [each.outcome for each in found_] == (["fail"] if named else [])
    assert all("socketfilterfw --add" in each.hint for each in found_)


def in_use(address, port):
    """Refuse to bind as another user's process makes it."""
    return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@pytest.mark.parametrize("installed", [True, False])
def test_port_is_held_by_another_user(mac, ollama, installed):
    """A listener that lsof doesn't show belongs to another user, at the proxy's address and at Ollama's."""
    where = {"PROXY_LISTEN": "127.0.0.1", "PROXY_PORT": "21500"}
    if installed:
        mac.install(ollama.url, **where)
    machine = replace(mac.machine(), bind=in_use, environ={**mac.environ, **where, "PROXY_UPSTREAM": ollama.url})
    told = status(machine, {}, mac.tailscale)
    failed = {(name, hint): detail for name, detail, hint in found(told, "fail")}
    proxy = failed["proxy port", "sudo lsof -nP -iTCP:21500 -sTCP:LISTEN"]
    assert "127.0.0.1:21500 is in use, but by no process of yours" in proxy
    others = f"sudo lsof -nP -iTCP:{port_of(ollama)} -sTCP:LISTEN"
    ((_, detail, _),) = [each for each in found(told, "fail" if installed else "warn") if each[2] == others]
    assert "is in use, but by no process of yours: by another user's or root's" in detail


def test_ollama_of_others(mac, ollama):
    """Someone else's Ollama is fine if ours isn't loaded, and is shown. Next to ours it is wrong."""
    mac.listens((88, "/Applications/Ollama.app/Contents/Resources/ollama serve", f"127.0.0.1:{port_of(ollama)}"))
    told = mac.look(upstream=ollama.url)
    assert found(told, "warn") == []
    assert ("Ollama HTTP", f"Ollama 0.32.15 answers at {ollama.url}", "") in found(told, "pass")
    mac.install(ollama.url)
    detail = f"127.0.0.1:{port_of(ollama)} is held by ollama (pid 88), not by the agent"
    hint = f"sudo lsof -nP -iTCP:{port_of(ollama)} -sTCP:LISTEN"
    assert ("Ollama port", detail, hint) in found(mac.look(), "fail")


def test_ollama_beyond_loopback(mac, ollama):
    """An Ollama that others can reach is wrong, whoever started it."""
    mac.listens((88, "/x/ollama serve", f"*:{port_of(ollama)}"))
    detail = f"ollama (pid 88) listens on *:{port_of(ollama)}: anyone who can reach that gets past the proxy"
    hint = "launchctl unsetenv OLLAMA_HOST; in Ollama.app: Settings, Expose Ollama to the network: off"
    assert ("Ollama's address", detail, hint) in found(mac.look(upstream=ollama.url), "fail")


def test_stub_of_a_model_elsewhere(mac):
    """A stub that Ollama refuses while its cloud is off is named with what removes it."""
    with threaded(*DEFAULT_MODELS, REMOTE_STUB) as ollama:
        told = mac.look(upstream=ollama.url)
    ((name, _, hint),) = [each for each in found(told, "warn") if "far:latest" in each[1]]
    assert (name, hint) == ("remote model", "ollama rm 'far:latest'")


def test_something_else_on_ollamas_port(mac, upstream):
    """What accepts connections there but never answers is no Ollama, and the finding says so."""
    told = mac.look(upstream=f"http://127.0.0.1:{upstream.port}")
    assert told.ollama.version is None
    ((detail, hint),) = [each[1:] for each in found(told, "fail") if each[0] == "Ollama HTTP"]
    assert "does not answer: connected, but" in detail
    assert hint == f"sudo lsof -nP -iTCP:{upstream.port} -sTCP:LISTEN"


async def test_another_server_on_ollamas_port(mac):
    """Where another server answers, nobody is advised to start an Ollama that couldn't have the port."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        told = await asyncio.to_thread(mac.look, upstream=url)
    ours = [each for each in found(told, "fail") if each[0] == "Ollama HTTP"]
    assert ours == [("Ollama HTTP", f"{url} answers, but not like Ollama", f"curl -i {url}/api/version")]


@pytest.mark.parametrize("case", ["gone", "dangling", "not_executable", "moved"])
def test_program_of_a_plist(mac, ollama, tmp_path, case):
    """An interpreter that is gone or moved is named before the next start fails, or the firewall drops clients."""
    program = tmp_path / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    if case == "dangling":
        program.symlink_to("/nowhere/python3.13")
    elif case != "gone":
        program.write_text("")
        program.chmod(0o755 if case == "moved" else 0o644)
        (tmp_path / "venv" / ".made-of").write_text("/opt/homebrew/Cellar/python3.13")
    mac.plist(PROXY, (str(program),))
    told = mac.look(upstream=ollama.url)
    outcome, detail = {
        "gone": ("fail", f"{program}, its program, is gone, so it can't be started again"),
        "dangling": (
            "fail",
            f"{program} is a link to /nowhere/python3.13, which is gone, so it can't be started again",
        ),
        "not_executable": ("fail", f"{program}, its program, can't be executed"),
        "moved": (
            "warn",
            f"its Python moved from /opt/homebrew/Cellar/python3.13 to {program}: the firewall may drop connections "
            "silently",
        ),
    }[case]
    assert ("proxy program", detail, "python -m proxy install") in found(told, outcome)


def test_wrong_settings(mac, ollama):
    """Settings that the service can't start with are reported, and the rest is checked with the defaults."""
    mac.install(ollama.url, start=False, PROXY_MAX_BODY="12XB")
    told = mac.look()
    (fault,) = [detail for name, detail, _ in found(told, "fail") if name == "settings"]
    assert fault.startswith('max_body = "12XB" (environment PROXY_MAX_BODY): is not a size')


def test_broken_plist(mac, ollama):
    """A plist that isn't well-formed is reported."""
    path = mac.plist(PROXY)
    path.write_text("oops")
    assert ("proxy agent", f"{path} is not a plist", "python -m proxy install") in found(
        mac.look(upstream=ollama.url), "fail"
    )


def test_plist_decides_over_the_shell(mac, ollama):
    """The settings are those that the service has, not those of the shell that asks."""
    mac.environ |= {"PROXY_PORT": "1"}
    mac.install(ollama.url, start=False, PROXY_PORT="21500")
    assert "nothing listens on port 21500" in str(found(mac.look(), "fail"))
    mac.listens((77, "/x/python", f"{ADDRESS}:21500"))
    assert f"{ADDRESS}:21500 is held by python" in str(found(mac.look(), "fail"))


# --- not to be seen ---------------------------------------------------------------------------------------------------


def test_over_ssh(mac, ollama):
    """If no user is logged in at the screen, launchd has no domain for the services. The rest is checked."""
    mac.install(ollama.url, start=False)
    mac.knobs(headless=True)
    told = mac.look()
    assert found(told, "fail")[0][1].endswith("nobody is logged in at this Mac's screen")
    assert (told.proxy.loaded, told.ollama.version) == (None, "0.32.15")


def test_without_launchd_and_lsof(mac, ollama):
    """Where neither can be asked it is said, and Ollama and the logs are asked all the same."""
    mac.environ |= {"PATH": ""}
    machine = replace(mac.machine(), root=mac.home)  # where there are no tools of the system either
    told = status(machine, {"upstream": ollama.url}, mac.tailscale)
    unseen = ["proxy agent", "Ollama agent", "proxy port", "Ollama port"]
    assert [name for name, *_ in found(told, "skip")] == unseen
    assert found(told, "skip")[0][1].endswith("has no launchctl")
    assert (told.proxy.running, told.proxy.addresses, told.ollama.version) == (None, None, "0.32.15")
    assert told.well


def test_in_the_foreground(mac, ollama):
    """Without launchd a proxy that someone started is found by its port."""
    mac.environ |= {"PATH": f"{mac.commands}:/usr/bin:/bin"}
    for name in ("launchctl", "plutil"):
        (mac.commands / name).unlink()
    mac.listens((55, "/x/python -m proxy", "127.0.0.1:21500"), (66, "/x/ollama", f"127.0.0.1:{port_of(ollama)}"))
    told = mac.look(listen="127.0.0.1", port="21500", upstream=ollama.url)
    assert ("proxy port", "python (pid 55) listens on 127.0.0.1:21500", "") in found(told, "pass")
    assert (told.well, told.proxy.pid, told.proxy.loaded, told.ollama.pid) == (True, 55, None, 66)


# --- printed ----------------------------------------------------------------------------------------------------------


def test_printed(mac, ollama, capsys):
    """A status has one fact a line, and nothing in it can control a terminal."""
    proxy, server = mac.install(ollama.url)
    mac.tailscale.tailnet = replace(UP, addresses=(ADDRESS,))
    mac.listens((proxy, "/p/python", f"{ADDRESS}:11434"), (server, "/o/ollama", f"127.0.0.1:{port_of(ollama)}"))
    refusal = {"time": "T", "peer": "100.64.0.9", "method": "POST", "path": "/\x1b[31m", "verdict": "refused"}
    (mac.logs / "access.log").write_text(json.dumps({**refusal, "reason": "path_not_served"}) + "\n")
    print_status(mac.look(), Printer())
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:2] == ["proxy", f"installed yes, as {PROXY}"]
    assert f"listens on {ADDRESS}:11434" in lines
    assert "refused the last 1:" in lines
    assert r"T 100.64.0.9 POST /\x1b[31m path_not_served" in lines
    assert "models none loaded" in lines
    assert f"pass Ollama HTTP: Ollama 0.32.15 answers at {ollama.url}" in lines
    assert "\x1b" not in out
    assert lines[-3:] == [
        "hint: python -m proxy verify (proves what it promises)",
        "hint: python -m proxy logs --refused (all of them)",
        "hint: python -m proxy dashboard (all of this and the access log, on a page)",
    ]


def test_printed_state(capsys):
    """What the proxy is doing now stands below its facts, with the command that shows more if there are requests."""
    service = SimpleNamespace(
        **dict.fromkeys(
            ("loaded", "disabled", "running", "pid", "since", "last_exit", "addresses", "version", "refusals", "models")
        ),
        installed=False,
        name="ollama",
        label=OLLAMA,
    )
    live = {"exchanges": [{"phase": "load"}], "models": [], "counters": {}, "now": 60.0, "started": 0.0}
    print_status(SimpleNamespace(well=True, proxy=service, ollama=service, findings=(), live=live), Printer())
    printed = capsys.readouterr().out
    assert "  requests   0 with Ollama, 1 waiting; 0 for a model in 1 min, 0 waited\n" in printed
    assert printed.endswith("  hint: python -m proxy top (each request, and why it waits)\n")


def test_printed_models(capsys):
    """A loaded model is shown with its size in memory, and until when it stays."""
    ollama = SimpleNamespace(
        **dict.fromkeys(
            ("loaded", "disabled", "running", "pid", "since", "last_exit", "addresses", "version", "refusals")
        ),
        installed=False,
        name="ollama",
        label=OLLAMA,
        models=({"name": "qwen3:8b", "size": 5_200_000_000, "expires_at": "2026-11-23T21:00:00Z"},),
    )
    print_status(SimpleNamespace(well=False, proxy=ollama, ollama=ollama, findings=(), live=None), Printer())
    assert "  models     qwen3:8b, 5.2 GB, until 2026-11-23T21:00:00Z\n" in capsys.readouterr().out


@pytest.fixture
def short_folder():
    """Give a folder whose path is short enough for a socket below it."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


# --- all of it, with real processes -----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("lsof") is None or shutil.which("ps") is None, reason="no lsof or no ps here")
def test_real_processes(tmp_path, short_folder, capsys):
    """The rendered plists start a proxy and an Ollama that status finds by their pids, and that end politely."""
    agents = Agents(short_folder)
    port, upstream = free_ports(2)
    start = tmp_path / "start"
    start.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "sys.argv = ['x', '--port', sys.argv[2]] if sys.argv[1] == 'serve' else ['x']\n"
        "runpy.run_module('proxy' if len(sys.argv) == 1 else 'proxy.simulated_ollama', run_name='__main__')\n"
    )
    start.chmod(0o755)
    logs = agents.home / "Library" / "Logs" / "remote-ollama-proxy"
    logs.mkdir(parents=True)
    config = agents.home / "config.toml"
    config.write_text(f'listen = ["127.0.0.1"]\nport = {port}\nupstream = "http://127.0.0.1:{upstream}"\n')
    values = {"PYTHON": start, "OLLAMA": start, "HOME": agents.home, "LOGS": logs}
    jobs = Launchd(os.getuid(), agents.machine().run)
    try:
        for label in (OLLAMA, PROXY):
            path = agents.home / "Library" / "LaunchAgents" / f"{label}.plist"
            text = render(label, values).decode().replace(">serve<", f">serve</string><string>{upstream}<")
            more = f"<key>PROXY_CONFIG</key><string>{config}</string><key>PROXY_DIAGNOSTICS_LOG</key>"
            path.write_text(text.replace("<key>PROXY_DIAGNOSTICS_LOG</key>", more))
            path.chmod(0o600)
            jobs.reload(label, path)
        told = None

        def well():
            nonlocal told
            told = status(agents.machine(), {})
            return told.well

        until(well, 30.0)
        assert told.proxy.addresses == (f"127.0.0.1:{port}",)
        assert told.proxy.pid == agents.job(PROXY)["pid"]
        assert told.ollama.pid == agents.job(OLLAMA)["pid"]
        assert told.proxy.version == __version__
        assert told.proxy.since is not None
        assert (told.live["pid"], told.live["exchanges"]) == (told.proxy.pid, [])
        print_status(told, Printer())
        assert "0 with Ollama, 0 waiting; 0 for a model in " in capsys.readouterr().out
        jobs.bootout(PROXY)
        assert '"event":"stopped"' in (logs / "diagnostics.log").read_text()
        assert (logs / "launchd.log").read_text() == ""
    finally:
        agents.close()
