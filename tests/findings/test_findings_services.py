"""Service status: what is seen of agents, processes, ports and answers."""

from __future__ import annotations

import os
import shutil

import pytest

from proxy import __version__
from proxy.manage.facts.answers import Answer
from proxy.manage.findings import ollama, services
from proxy.manage.findings.table import SERVICES
from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from proxy.manage.machine.processes import Process
from proxy.manage.machine.services import settings_environ
from proxy.terminal.finding import Outcome
from tests.support.mac.installed_mac import ADDRESS, LSOF, PIDS, PORT, RUN, assert_told, case, wrong


def by_hand(mac):
    """Have the proxy be one that someone started, without an agent."""
    mac.unload(PROXY)
    mac.environ |= {"PROXY_DIAGNOSTICS_LOG": str(mac.diagnostics)}


def as_daemon(mac):
    """Make the proxy a daemon of the system, as docs/setup.md describes."""
    folder = mac.root / "Library" / "LaunchDaemons"
    folder.mkdir(parents=True)
    shutil.move(plist_path(PROXY, mac.home), folder)
    mac.unload(PROXY, remove=False)


CASES = (
    case(
        "proxy_not_loaded",
        lambda mac: mac.unload(PROXY, remove=False),
        services.agents,
        ("proxy agent", "fail", "is not loaded"),
        f"{RUN} start proxy",
    ),
    case(
        "nothing_installed",
        lambda mac: (mac.unload(PROXY), mac.listens(proxy=[])),
        services.agents,
        ("proxy agent", "fail", "is not installed"),
        f"{RUN} install",
    ),
    case(
        "started_by_hand",
        by_hand,
        services.agents,
        ("proxy agent", "skip", f"started the program that listens there (pid {PIDS['proxy']})"),
        "",
    ),
    case(
        "ollama_of_others",
        lambda mac: mac.unload(OLLAMA),
        services.agents,
        ("Ollama agent", "skip", "someone else manages it"),
        "",
    ),
    case(
        "ends_again_and_again",
        lambda mac: mac.run_job(OLLAMA, None, state="spawn scheduled", ended="last exit code = 1"),
        services.agents,
        ("Ollama agent", "fail", "it ended with exit code 1"),
        "tail -n 20 'LOGS/ollama.log'",
    ),
    case(
        "process_of_another",
        lambda mac: mac.owner(PIDS["ollama"], 4711, "bob"),
        services.processes,
        ("Ollama process", "fail", f"process {PIDS['ollama']} runs as bob"),
        f"sudo kill {PIDS['ollama']}; {RUN} restart ollama",
    ),
    case(
        "ollama_of_another_user",
        lambda mac: (mac.unload(OLLAMA), mac.listens(ollama=[])),
        services.processes,
        ("Ollama process", "warn", "no process of yours does"),
        LSOF,
    ),
    case(
        "port_of_the_proxy_taken",
        lambda mac: mac.listens((77, "/opt/homebrew/bin/haproxy -f x", ADDRESS, PORT), proxy=[]),
        services.ports,
        ("proxy port", "fail", f"{ADDRESS}:{PORT} is held by haproxy (pid 77), not by the agent"),
        LSOF,
    ),
    case(
        "port_of_ollama_taken",
        lambda mac: mac.listens((78, "/usr/sbin/nginx", "127.0.0.1", PORT), ollama=[]),
        services.ports,
        ("Ollama port", "fail", "held by nginx (pid 78), not by the agent"),
        LSOF,
    ),
    case(
        "port_taken_without_an_agent",
        lambda mac: (by_hand(mac), mac.listens((77, "/usr/sbin/nginx", ADDRESS, PORT), proxy=[])),
        services.ports,
        ("proxy port", "fail", "held by nginx (pid 77)"),
        LSOF,
    ),
    case(
        "nobody_on_the_proxys_port",
        lambda mac: mac.listens(proxy=[]),
        services.ports,
        ("proxy port", "fail", f"nothing listens on port {PORT}"),
        f"{RUN} logs --diagnostics",
    ),
    case(
        "proxy_silent",
        lambda mac: mac.network.at.pop((ADDRESS, PORT)),
        services.proxy_answers,
        ("proxy HTTP", "fail", f"{ADDRESS}:{PORT} does not answer: [Errno 111]"),
        f"{RUN} logs --diagnostics",
    ),
    case(
        "another_in_the_proxys_place",
        lambda mac: mac.network.at.update({(ADDRESS, PORT): mac.network.ollama}),
        services.proxy_answers,
        ("proxy HTTP", "fail", "not from the proxy"),
        LSOF,
    ),
    case(
        "proxy_without_ollama",
        lambda mac: mac.network.at.update({(ADDRESS, PORT): lambda *_: Answer(502, b"", "1a2b")}),
        services.proxy_answers,
        ("proxy HTTP", "warn", "with 502 instead of 200"),
        f"{RUN} status",
    ),
    case(
        "tailscale_down",
        lambda mac: mac.tailnet(state="Stopped"),
        services.proxy_answers,
        ("proxy HTTP", "fail", "Tailscale is stopped"),
        "tailscale up",
    ),
    case(
        "ollama_down",
        lambda mac: mac.network.at.pop(("127.0.0.1", PORT)),
        ollama.answers,
        ("Ollama HTTP", "fail", "does not answer"),
        f"{RUN} restart ollama",
    ),
    case(
        "no_ollama",
        lambda mac: mac.network.documents.clear(),
        ollama.answers,
        ("Ollama HTTP", "fail", "not like Ollama"),
        f"curl -i http://127.0.0.1:{PORT}/api/version",
    ),
    case(
        "old_ollama",
        lambda mac: mac.network.documents.update({"/api/version": {"version": "0.13.5"}}),
        ollama.answers,
        ("Ollama HTTP", "warn", "too old for /v1/messages"),
        "brew upgrade ollama",
    ),
    case(
        "not_restarted_after_an_upgrade",
        lambda mac: mac.edit(PROXY, ProgramArguments=["/x/versions/9.9.9-87654321/bin/python"]),
        services.versions,
        ("proxy version", "fail", "/x/versions/9.9.9-87654321/bin/python is installed"),
        f"{RUN} restart proxy",
    ),
    case(
        "older_than_its_environment",
        lambda mac: mac.event("listening", version="0.0.9"),
        services.versions,
        ("proxy version", "fail", f"0.0.9 runs, and {__version__} is installed"),
        f"{RUN} restart proxy",
    ),
    case(
        "older_than_this_command",
        lambda mac: (by_hand(mac), mac.event("listening", version="0.0.9")),
        services.versions,
        ("proxy version", "warn", f"0.0.9 runs, but this command is version {__version__}"),
        f"{RUN} install",
    ),
    case(
        "version_not_told",
        lambda mac: mac.diagnostics.unlink(),
        services.versions,
        ("proxy version", "skip", "no diagnostics log"),
        "",
    ),
)


@pytest.mark.parametrize(("change", "check", "finding", "hint"), CASES)
def test_one_thing_is_wrong(installed, change, check, finding, hint):
    """Each fault has one finding, with a command that helps."""
    assert_told(installed, change, check, finding, hint)


def test_started_by_hand(installed):
    """Of a proxy that someone started its agent is all that is left out."""
    by_hand(installed)
    found = installed.found(*installed.group(SERVICES))
    assert [(name, outcome) for name, outcome, *_ in wrong(found)] == [("proxy agent", Outcome.SKIP)]


def test_daemons_of_the_system(installed):
    """Services that the owner handed over to the system are looked at but for launchd, with settings of their plist."""
    as_daemon(installed)
    installed.listens(ollama=[])
    found = installed.found(*installed.group(SERVICES))
    launchctl = f"sudo launchctl print system/{PROXY}"
    detail = "the services are daemons of the system, not agents"
    assert wrong(found)[:2] == [
        ("proxy agent", Outcome.SKIP, detail, launchctl),
        ("Ollama agent", Outcome.SKIP, detail, launchctl),
    ]
    assert {finding.name: finding.detail for finding in found}["proxy version"] == f"{__version__} runs, as installed"
    assert settings_environ(installed.machine())["PROXY_CONFIG"] == str(installed.config)
    assert installed.seen_as().start("proxy") == f"sudo launchctl kickstart -k system/{PROXY}"


def test_root(installed):
    """A process of root is wrong, but for one who is root."""
    installed.owner(PIDS["proxy"], 0, "root")
    (process, _) = installed.found(services.processes)
    assert process.outcome is (Outcome.WARN if os.getuid() == 0 else Outcome.FAIL)
    assert (
        process.detail == f"process {PIDS['proxy']} runs as root: a vulnerability in it would affect the whole machine"
    )


def test_over_ssh(installed):
    """If no user is logged in at the screen, launchd can't report the agents, and the finding says what helps."""
    installed.knobs(headless=True)
    for finding in installed.found(services.agents):
        assert finding.outcome is Outcome.FAIL
        assert "nobody is logged in" in finding.detail
        assert finding.hint.startswith("log in at the screen")


@pytest.mark.parametrize(
    ("holds", "off", "words"),
    [
        pytest.param(PIDS["proxy"], False, "is kept awake: a model is answering", id="holds"),
        pytest.param(72, False, "none is answering now", id="for_another"),
        pytest.param(None, False, "none is answering now", id="idle"),
        pytest.param(None, True, "may sleep", id="off"),
    ],
)
def test_keep_awake(installed, holds, off, words):
    """A hold is seen by its process, whose command line names the proxy. That there is none is no fault."""
    if off:
        installed.settings("keep_awake = false")
    held = () if holds is None else (Process(99, command=f"/usr/bin/caffeinate -i -w {holds}"),)
    installed.processes = lambda: held
    (finding,) = installed.found(services.keep_awake)
    assert (finding.name, finding.outcome) == ("keep awake", Outcome.PASS)
    assert words in finding.detail
