"""Uninstalling on a Mac of fakes: what goes, what comes back, what stays."""

from __future__ import annotations

import os

import pytest

from proxy.manage.facts.mac import HAPROXY, Options
from proxy.manage.install import uninstall
from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from tests.install.test_install import SEED
from tests.support.mac.fake_launchd import alive, until
from tests.support.mac.fake_mac import Mac


@pytest.fixture
def mac(tmp_path):
    """Give a Mac whose Ollama and proxy do nothing."""
    mac = Mac(tmp_path)
    yield mac
    mac.close()


def test_uninstall(mac):
    """Agents, command and environments go; settings and logs stay, and both are said."""
    mac.install()
    pids = [until(lambda label=label: mac.job(label).get("pid")) for label in (PROXY, OLLAMA)]
    machine = mac.machine()
    assert mac.uninstall() == 0
    assert mac.seen()["jobs"] == {}
    assert not any(map(alive, pids))
    assert not os.path.lexists(machine.link)
    assert [path.name for path in machine.support.iterdir()] == ["config.toml"]
    assert list(machine.agents.iterdir()) == []
    said = "\n".join(mac.heard.lines)
    for gone in (f"stopped {PROXY}", f"removed {plist_path(OLLAMA, mac.home)}", f"removed {machine.versions}"):
        assert f"  {gone}" in said.partition("left as they are")[0]
    for left in (f"{machine.config} (--purge removes it)", f"{machine.logs} (--purge removes it)", "~/.ollama"):
        assert left in said.partition("left as they are")[2]


def test_twice(mac):
    """A second uninstall finds nothing to do, and that is well."""
    mac.install()
    mac.uninstall()
    before = mac.seen()
    assert mac.uninstall() == 0
    assert mac.seen() == before
    assert mac.heard.lines[0] == "left as they are"


def test_nothing_installed(mac):
    """On a Mac without an install there is nothing to do."""
    path = mac.load(OLLAMA, **SEED)
    before = mac.seen()
    assert mac.uninstall(purge=True) == 0
    assert mac.seen() == before
    assert path.exists()


def test_purge(mac):
    """With --purge, settings and logs are removed too, and nothing of the program is left."""
    before = mac.seen()["tree"].keys()
    mac.install()
    (mac.machine().logs / "access.log").write_text("{}\n")
    assert mac.uninstall(purge=True) == 0
    left = mac.seen()["tree"].keys() - before
    assert left == {"Library/Application Support", "Library/Logs", ".local", ".local/bin"}


@pytest.mark.parametrize("purge", [False, True], ids=["keeps_settings", "purge"])
def test_index_of_a_log_elsewhere(mac, tmp_path, purge):
    """With --purge, the dashboard's index goes from next to the log, wherever the settings say that the log is."""
    log = tmp_path / "logs of mine" / "access.log"
    log.parent.mkdir()
    for name in ("access.log", "access.log.index", "access.log.index-wal", "access.log.indexes"):
        (log.parent / name).write_text("{}\n")
    mac.environ["PROXY_ACCESS_LOG"] = str(log)
    mac.uninstall(purge=purge)
    kept = {"access.log", "access.log.indexes"}
    removed = {"access.log.index", "access.log.index-wal"}
    assert {path.name for path in log.parent.iterdir()} == (kept if purge else kept | removed)


def test_settings_that_are_wrong(mac):
    """Settings that can't be read don't keep --purge from removing them."""
    mac.install()
    mac.environ["PROXY_PORT"] = "x"
    assert mac.uninstall(purge=True) == 0
    assert not mac.machine().config.exists()


def test_finders_files_go(mac):
    """Finder's files in a folder don't stop the folder from being removed."""
    mac.load(OLLAMA, **SEED)
    mac.install()
    machine = mac.machine()
    for folder in (machine.support, machine.versions, machine.backup, machine.logs):
        (folder / ".DS_Store").write_bytes(b"Bud1")
    assert mac.uninstall(purge=True) == 0
    assert not machine.support.exists()
    assert not machine.logs.exists()
    assert not [line for line in mac.heard.lines if ".DS_Store" in line]


@pytest.mark.parametrize("names", [(), ("live-11434.sock",), ("live-11434.sock", "live-21500.sock", ".DS_Store")])
def test_sockets_go(mac, names):
    """The folder with the sockets goes, as a dry run says, and with it sockets that a killed proxy left there."""
    mac.install()
    folder = mac.machine().sockets
    folder.mkdir(0o700)
    for name in names:
        (folder / name).touch()
    assert mac.uninstall(dry_run=True) == 0
    shown = mac.heard.lines[1:-1]
    assert folder.exists()
    assert mac.uninstall() == 0
    assert mac.heard.lines == shown
    assert f"  removed {folder}" in shown
    assert not folder.exists()


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_others_put_with_the_sockets_stays(mac, what):
    """A folder of sockets that holds another file, or is a link elsewhere, stays as it is, and is named."""
    mac.install()
    folder, elsewhere = mac.machine().sockets, mac.home / "elsewhere"
    if what == "link":
        elsewhere.mkdir()
        folder.symlink_to(elsewhere)
        (elsewhere / "live-1.sock").touch()
    else:
        folder.mkdir()
        (folder / "live-1.sock.bak").touch()
    assert mac.uninstall(purge=True) == 0
    assert [path.name for path in folder.iterdir()] != []
    if folder.parent == mac.machine().support:
        assert f"  {folder}, which this program did not make" in mac.heard.lines


def test_what_others_put_there_is_named(mac):
    """A file in our folder that isn't ours stays, and is named."""
    mac.install()
    mine = mac.machine().support / "notes.txt"
    mine.write_text("mine")
    assert mac.uninstall(purge=True) == 0
    assert mine.exists()
    assert f"  {mine}, which this program did not make" in mac.heard.lines


def test_what_was_there_comes_back(mac):
    """A com.ollama and a com.haproxy that an install replaced are put back as they were, and loaded."""
    mac.load(OLLAMA, **SEED)
    mac.load(HAPROXY)
    before = mac.seen()
    mac.install()
    assert mac.uninstall(purge=True) == 0
    after = mac.seen()
    assert after["jobs"] == before["jobs"]
    agents = {path: content for path, content in after["tree"].items() if "LaunchAgents" in path}
    assert agents == {path: content for path, content in before["tree"].items() if "LaunchAgents" in path}
    assert "note: that com.ollama listens on 0.0.0.0:11434, beyond loopback, as it did before" in "".join(
        mac.heard.lines
    )


@pytest.mark.parametrize("purge", [False, True], ids=["keeps_settings", "purge"])
@pytest.mark.parametrize(
    "before",
    [
        pytest.param(lambda _: None, id="nothing_before"),
        pytest.param(lambda mac: (mac.load(OLLAMA, **SEED), mac.load(HAPROXY)), id="agents_of_others"),
    ],
)
def test_dry_run(mac, before, purge):
    """A dry run asks nothing, changes nothing, and reports what the uninstall then does, word for word."""
    before(mac)
    mac.install()
    (mac.machine().support / ".DS_Store").write_bytes(b"Bud1")
    there = mac.seen()
    assert mac.uninstall(purge=purge, dry_run=True) == 0
    assert (mac.seen(), mac.heard.asked) == (there, [])
    first, *shown, last = mac.heard.lines
    assert (first, last) == ("an uninstall would report this", "nothing was changed")
    assert mac.uninstall(purge=purge) == 0
    assert mac.heard.lines == shown
    assert mac.seen() != there


def test_haproxy_that_is_there_again(mac):
    """A com.haproxy that its owner made again since is left, and the old one stays in the backup."""
    mac.load(HAPROXY)
    mac.install()
    new = mac.plist(HAPROXY, ExitTimeOut=7)
    content = new.read_bytes()
    assert mac.uninstall() == 0
    assert new.read_bytes() == content
    assert (mac.machine().backup / new.name).exists()


def test_ollama_of_others_stays(mac):
    """After an install with --proxy-only Ollama's agent isn't touched."""
    path = mac.load(OLLAMA, **SEED)
    mac.install(Options(proxy_only=True))
    pid = until(lambda: mac.job(OLLAMA).get("pid"))
    assert mac.uninstall() == 0
    assert path.exists()
    assert mac.job(OLLAMA)["pid"] == pid


def test_command_of_others_stays(mac):
    """A command of that name that isn't ours stays."""
    mac.install()
    link = mac.machine().link
    link.unlink()
    link.symlink_to("/usr/bin/true")
    assert mac.uninstall() == 0
    assert link.is_symlink()


def test_failure_keeps_what_is_needed_to_go_on(mac):
    """While an agent can't be unloaded, what it runs on and the note of whose it is stay; the next one goes on."""
    mac.install()
    machine = mac.machine()
    real = (mac.commands / "launchctl").read_text()
    mac.command(
        "launchctl", 'case "$1" in bootout) echo "Boot-out failed: 9: Bad file descriptor" >&2; exit 9;; esac\n' + real
    )
    assert mac.uninstall() == 1
    assert "can't be unloaded" in mac.heard.errors[0][0]
    assert machine.receipt.exists()
    assert machine.versions.exists()
    mac.command("launchctl", real)
    assert mac.uninstall() == 0
    assert not machine.versions.exists()


def test_over_ssh(mac):
    """Without a session at the screen nothing runs; the files go all the same, and what comes back loads at login."""
    mac.plist(OLLAMA, **SEED)
    mac.install()
    for label in (PROXY, OLLAMA):
        mac.machine().run("launchctl", "bootout", f"gui/{os.getuid()}/{label}")
        until(lambda label=label: mac.job(label) is None)
    mac.knobs(headless=True)
    assert mac.uninstall() == 0
    assert plist_path(OLLAMA, mac.home).exists()
    assert mac.environment(OLLAMA) == SEED["EnvironmentVariables"]
    assert not plist_path(PROXY, mac.home).exists()


def test_no(mac):
    """Who answers no has nothing changed."""
    mac.install()
    before = mac.seen()
    mac.heard = type(mac.heard)()
    mac.heard.answer = False
    assert mac.heard.code(lambda: uninstall.uninstall(uninstall.Uninstaller(mac.machine()), mac.heard)) == 1
    assert mac.seen() == before
    assert mac.heard.asked == ["Remove remote-ollama-proxy?"]


def test_needs_macos(mac):
    """Without macOS an uninstall says so in one line; exit code 3."""
    assert mac.uninstall(platform="linux") == 3
    assert mac.heard.errors[0][0] == "uninstall needs macOS, and this is Linux"
