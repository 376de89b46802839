"""Security: what is seen of files, of the environment of Ollama, and of what may leave the Mac."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.manage.facts.facts import Facts
from proxy.manage.findings import files, ollama, ollama_environment, services
from proxy.manage.findings.ollama_environment import on_loopback, switched_on
from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from proxy.terminal.finding import Outcome
from tests.support.mac.installed_mac import RUN, assert_told, case

CASES = (
    case(
        "access_log_for_others_to_read",
        lambda mac: (mac.logs / "access.log.1").chmod(0o644),
        files.access_log,
        ("access log file", "fail", "access.log.1 has mode 0644"),
        "chmod 600 'LOGS/access.log.1'",
    ),
    case(
        "diagnostics_is_a_link",
        lambda mac: (mac.diagnostics.unlink(), mac.diagnostics.symlink_to("/dev/null")),
        files.diagnostics_log,
        ("diagnostics log file", "fail", "is not a regular file"),
        "ls -l 'LOGS/diagnostics.log'",
    ),
    case(
        "log_folder_that_others_may_read",
        lambda mac: mac.logs.chmod(0o755),
        files.access_log,
        ("access log file", "warn", "has mode 0755: others may list the logs"),
        "chmod 700 'LOGS'",
    ),
    case(
        "log_folder_that_others_may_change",
        lambda mac: mac.logs.chmod(0o777),
        files.access_log,
        ("access log file", "fail", "has mode 0777: everyone on this machine may change it"),
        "chmod 700 'LOGS'",
    ),
    case(
        "no_log_yet",
        lambda mac: [path.unlink() for path in mac.logs.glob("access.log*")],
        files.access_log,
        ("access log file", "skip", "access.log yet"),
        "",
    ),
    case(
        "log_to_standard_output",
        lambda mac: mac.variable(PROXY, "PROXY_ACCESS_LOG", "-"),
        files.access_log,
        ("access log file", "skip", "goes to a standard stream"),
        "",
    ),
    case(
        "plist_that_others_may_change",
        lambda mac: plist_path(OLLAMA, mac.home).chmod(0o666),
        files.plists,
        ("Ollama plist", "fail", "everyone on this machine may change it"),
        "chmod 644 'AGENTS/com.ollama.plist'; chmod 755 'AGENTS'",
    ),
    case(
        "not_kept_alive",
        lambda mac: mac.edit(PROXY, KeepAlive={"SuccessfulExit": False}),
        files.plists,
        ("proxy plist", "fail", "KeepAlive is not true: if it ends, it isn't restarted"),
        f"{RUN} install",
    ),
    case(
        "not_at_login",
        lambda mac: mac.edit(OLLAMA, RunAtLoad=None),
        files.plists,
        ("Ollama plist", "fail", "RunAtLoad is not true: it isn't started at login"),
        f"{RUN} install",
    ),
    case(
        "key_of_a_wrong_type",
        lambda mac: mac.edit(PROXY, ExitTimeOut="40"),
        files.plists,
        ("proxy plist", "fail", "ExitTimeOut is of the wrong type"),
        "plutil -lint 'AGENTS/com.remote-ollama-proxy.plist'",
    ),
    case(
        "program_gone",
        lambda mac: (mac.root / "opt/homebrew/bin/ollama").unlink(),
        services.programs,
        ("Ollama program", "fail", "is gone, so it can't be started again"),
        f"{RUN} install",
    ),
    case(
        "program_that_others_may_change",
        lambda mac: (mac.root / "opt/homebrew/bin/ollama").chmod(0o777),
        files.plists,
        ("Ollama plist", "fail", "bin/ollama has mode 0777"),
        "ls -ld 'ROOT/opt/homebrew/bin/ollama' 'ROOT/opt/homebrew/bin/ollama'",
    ),
    case(
        "settings_that_others_may_change",
        lambda mac: mac.config.chmod(0o602),
        files.config,
        ("settings file", "fail", "has mode 0602"),
        "chmod 600 'SUPPORT/config.toml'; chmod 700 'SUPPORT'",
    ),
    case(
        "no_settings_file",
        lambda mac: (mac.config.unlink(), mac.variable(PROXY, "PROXY_CONFIG", "")),
        files.config,
        ("settings file", "skip", "there is no "),
        "",
    ),
    case(
        "agent_beyond_loopback",
        lambda mac: mac.variable(OLLAMA, "OLLAMA_HOST", "0.0.0.0"),
        ollama_environment.host,
        ("OLLAMA_HOST of the agent", "fail", "0.0.0.0 is not on loopback"),
        f"{RUN} install",
    ),
    case(
        "session_beyond_loopback",
        lambda mac: mac.session(OLLAMA_HOST=":11434"),
        ollama_environment.host,
        ("OLLAMA_HOST of the login session", "fail", ":11434 is not on loopback"),
        "launchctl unsetenv OLLAMA_HOST",
    ),
    case(
        "shell_beyond_loopback",
        lambda mac: mac.environ.update({"OLLAMA_HOST": "mac:11434"}),
        ollama_environment.host,
        ("OLLAMA_HOST of this shell", "warn", "mac:11434 is not on loopback"),
        "unset OLLAMA_HOST",
    ),
    case(
        "any_web_page",
        lambda mac: mac.session(OLLAMA_ORIGINS="http://localhost, *"),
        ollama_environment.switches,
        ("OLLAMA_ORIGINS", "warn", "it is set for the login session"),
        "launchctl unsetenv OLLAMA_ORIGINS",
    ),
    case(
        "prompts_on_disk",
        lambda mac: mac.variable(OLLAMA, "OLLAMA_DEBUG_LOG_REQUESTS", "yes"),
        ollama_environment.switches,
        ("OLLAMA_DEBUG_LOG_REQUESTS", "warn", "writes every prompt to a temporary folder"),
        "take OLLAMA_DEBUG_LOG_REQUESTS out of [ollama_env] in 'SUPPORT/config.toml' or out of the plist; "
        f"{RUN} install",
    ),
    case(
        "cloud_on",
        lambda mac: mac.network.documents.update({"/api/status": {"cloud": {"disabled": False, "source": "none"}}}),
        ollama.cloud,
        ("Ollama's cloud", "warn", "send prompts to ollama.com; the proxy refuses what would leave this machine"),
        f"{RUN} restart ollama",
    ),
    case(
        "cloud_on_in_an_ollama_of_others",
        lambda mac: (
            mac.unload(OLLAMA),
            mac.network.documents.update({"/api/status": {"cloud": {"disabled": False}}}),
        ),
        ollama.cloud,
        ("Ollama's cloud", "warn", "is on"),
        f"{RUN} install; an Ollama of your own: start it with OLLAMA_NO_CLOUD=1",
    ),
    case(
        "cloud_not_told",
        lambda mac: mac.network.documents.pop("/api/status"),
        ollama.cloud,
        ("Ollama's cloud", "skip", "0.32.15 doesn't report it; 0.16.2 and newer do"),
        "brew upgrade ollama",
    ),
    case(
        "model_elsewhere",
        lambda mac: mac.network.documents.update(
            {"/api/tags": {"models": [{"name": "far\x1b[2J", "remote_host": "https://ollama.com:443"}]}}
        ),
        ollama.remote_models,
        ("remote model", "warn", r"far\x1b[2J runs at https://ollama.com:443: refused while"),
        r"ollama rm 'far\x1b[2J'",
    ),
)


@pytest.mark.parametrize(("change", "check", "finding", "hint"), CASES)
def test_one_thing_is_wrong(installed, change, check, finding, hint):
    """Each fault has one finding, with a command that helps."""
    assert_told(installed, change, check, finding, hint)


def test_files_of_another_user(installed):
    """A log and a plist that belong to another user are wrong, with what makes them this user's."""
    machine = replace(installed.machine(), uid=installed.machine().uid + 4711)
    facts = Facts.of_services(machine, {}, tailscale=installed.tailscale(), ask=installed.network.ask)
    (log, *_) = files.access_log(facts)
    assert (log.outcome, log.hint) == (Outcome.FAIL, f"sudo chown {machine.uid} '{installed.logs / 'access.log'}'")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:11434", True),
        ("localhost:1234", True),
        ("http://127.0.0.1:11434/", True),
        ("'127.0.0.1:11434'", True),
        ("[::1]:11434", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("0.0.0.0:11434", False),
        ("http://0.0.0.0", False),
        ("::", False),
        ("[::]:11434", False),
        (":11434", False),
        ("192.168.7.20:11434", False),
        ("mac.local", False),
    ],
)
def test_on_loopback(value, expected):
    """OLLAMA_HOST is read as leniently as Ollama reads it, and what may be anything isn't loopback."""
    assert on_loopback(value) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("true", True), ("'yes'", True), ("2", True), ("", False), ("0", False), ("False", False)],
)
def test_switch(value, expected):
    """A switch of Ollama's is on unless it is empty or plainly off."""
    assert switched_on(value) is expected
