"""What the firewall's tool says is read in every wording of it, and judged for every kind of Python."""

from __future__ import annotations

import http.client

import pytest

from proxy.manage.facts.firewall import Firewall, Verdict, look, read_verdict
from proxy.manage.findings import firewall as findings_firewall
from proxy.manage.machine.interpreter import Interpreter
from proxy.terminal.finding import Outcome
from tests.support.mac.fake_mac import FRAMEWORK, Mac

HOMEBREW = "opt/homebrew/Cellar/python@3.13/3.13.7/Frameworks/Python.framework/Versions/3.13"


@pytest.fixture
def mac(tmp_path):
    """Give a Mac on which all is well."""
    mac = Mac(tmp_path)
    yield mac
    mac.close()


ANSWERS = {
    "permitted_of_15": ("Incoming connection to PATH is permitted.", Verdict.PERMITTED),
    "blocked_of_15": ("Incoming connection to PATH is blocked.", Verdict.BLOCKED),
    "unlisted_of_15": ("The application PATH is not part of the firewall", Verdict.UNLISTED),
    "permitted_of_14": ("Incoming connection to the application is permitted ", Verdict.PERMITTED),
    "blocked_of_14": ("Incoming connection to the application is blocked ", Verdict.BLOCKED),
    "unlisted_of_14": ("The application is not part of the firewall ", Verdict.UNLISTED),
    "blocked_application": ("The application PATH is blocked from incoming connections", Verdict.BLOCKED),
    "permitted_application": ("The application PATH is permitted", Verdict.PERMITTED),
    "allowed": ("Incoming connection to the application is allowed", Verdict.PERMITTED),
    "at_path": ("Application at path ( PATH ) is blocked from accepting incoming connections.", Verdict.BLOCKED),
    "nothing": ("", Verdict.UNKNOWN),
    "managed": ("Firewall settings cannot be modified from command line on managed Mac computers.", Verdict.UNKNOWN),
}
PATHS = (
    "/usr/bin/python3",
    "/Users/blockhaus/python3.13",
    "/Users/Permitted/Library/Application Support/x/python3.13",
    "/Users/is blocked/is permitted/not part of the firewall/python3",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", ANSWERS)
def test_answer_is_read_without_its_path(path, case, tmp_path):
    """What a home, user or folder is called never decides what the firewall has noted of a program."""
    answer, verdict = ANSWERS[case]
    program = tmp_path / path.removeprefix("/")
    assert read_verdict(answer.replace("PATH", str(program)), program) is verdict


@pytest.mark.parametrize("macos", ["14.7", "15.6.1", "26.1"])
def test_settings_are_read_in_both_wordings(mac, macos):
    """State, stealth mode and trust in signed programs are read as macOS 14 says them, and 15 and 26."""
    mac.change(macos=macos, firewall=1)
    assert look(mac.machine(), None) == Firewall(on=True, trusts_signed=True)
    mac.change(stealth=True, allow_signed=False)
    assert look(mac.machine(), None) == Firewall(on=True, stealth=True)
    mac.change(block_all=True)
    assert look(mac.machine(), None).blocks_all


@pytest.mark.parametrize("macos", ["14.7", "15.6.1"])
@pytest.mark.parametrize("verdict", ["permitted", "blocked"])
def test_python_is_asked_about(mac, macos, verdict):
    """The firewall is asked about the program that listens, in each wording."""
    command = mac.root / FRAMEWORK / "bin/python3.13"
    mac.change(macos=macos, firewall=1, apps={str(mac.root / FRAMEWORK / "Resources/Python.app"): verdict})
    wall = look(mac.machine(), Interpreter(command, "python.org", "3.13"))
    assert wall.python == verdict


# --- which program ----------------------------------------------------------------------------------------------------


def homebrews(mac):
    """Put Homebrew's Python there: links to the command of its framework."""
    command = mac.framework(HOMEBREW)
    cellar = mac.root / "opt/homebrew/Cellar/python@3.13/3.13.7/bin/python3.13"
    link = mac.root / "opt/homebrew/opt/python@3.13/bin/python3.13"
    for each, target in ((cellar, command), (link, cellar)):
        each.parent.mkdir(parents=True)
        each.symlink_to(target)
    return link, mac.root / HOMEBREW / "Resources/Python.app"


def uvs(mac):
    """Put a Python of uv's there: a plain binary."""
    folder = mac.machine().pythons / "cpython-3.13.7-macos-aarch64-none/bin"
    folder.mkdir(parents=True)
    (folder / "python3.13").write_text("")
    return folder / "python3.13", folder / "python3.13"


def orgs(mac):
    """Return python.org's."""
    return mac.root / FRAMEWORK / "bin/python3.13", mac.root / FRAMEWORK / "Resources/Python.app"


@pytest.mark.parametrize("as_kept", [True, False], ids=["its_keeper_known", "any_keeper"])
@pytest.mark.parametrize(("make", "keeper"), [(orgs, "python.org"), (homebrews, "Homebrew"), (uvs, "uv")])
def test_program_that_the_firewall_knows(mac, make, keeper, as_kept):
    """A framework's command becomes the app inside it, whoever made it; uv's is the binary itself."""
    command, program = make(mac)
    assert Interpreter(command, keeper if as_kept else "other", "3.13").program == program


def test_program_of_an_environment(mac, tmp_path):
    """The `python` of an environment on a framework is that framework's app, too."""
    command, program = homebrews(mac)
    (tmp_path / "python").symlink_to(command)
    assert Interpreter(tmp_path / "python", "other", "").program == program


# --- judging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "signed", "keeper", "outcome"),
    [
        pytest.param("unlisted", True, "python.org", "pass", id="signed_and_trusted"),
        pytest.param("unlisted", False, "python.org", "fail", id="signed_but_nothing_is_trusted"),
        pytest.param("unlisted", True, "uv", "fail", id="uv"),
        pytest.param("unlisted", True, "Homebrew", "fail", id="homebrew"),
        pytest.param("blocked", True, "python.org", "fail", id="blocked_by_hand"),
        pytest.param("permitted", False, "uv", "pass", id="permitted"),
        pytest.param(Verdict.UNKNOWN, True, "uv", "warn", id="unknown_words"),
    ],
)
def test_judgement(mac, verdict, signed, keeper, outcome):
    """Only a Python that is listed, or signed by python.org where signed programs are trusted, is let in."""
    python = Interpreter(orgs(mac)[0], keeper, "3.13")
    wall = Firewall(on=True, python=Verdict(verdict), trusts_signed=signed)
    finding = findings_firewall.judge(wall, python)
    assert finding.outcome == outcome
    assert bool(finding.hint) is (outcome != "pass")
    assert findings_firewall.judge(Firewall(on=False, python=Verdict(verdict)), python).outcome is Outcome.PASS


def wrapped(error):
    """Return an error as `proof.ask` raises it after the connection stood."""
    try:
        raise http.client.HTTPException("connected, but: it failed") from error
    except http.client.HTTPException as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(ConnectionResetError(54, "Connection reset by peer"), "was reset", id="reset"),
        pytest.param(wrapped(ConnectionResetError(54, "reset")), "was reset", id="reset_after_the_handshake"),
        pytest.param(wrapped(http.client.RemoteDisconnected("closed")), "was reset", id="closed_without_an_answer"),
        pytest.param(TimeoutError(60, "Operation timed out"), "got no answer", id="silence"),
        pytest.param(wrapped(TimeoutError("timed out")), "got no answer", id="silence_after_the_handshake"),
        pytest.param(ConnectionRefusedError(61, "Connection refused"), None, id="nobody_listens"),
        pytest.param(http.client.BadStatusLine("SSH"), None, id="something_else_answers"),
    ],
)
def test_what_may_be_the_firewalls_doing(mac, error, words):
    """A firewall resets a connection or keeps silent; it neither refuses one nor answers."""
    python = Interpreter(uvs(mac)[0], "uv", "3.13")
    finding = findings_firewall.suspect(Firewall(on=True), python, error)
    assert (finding is None) is (words is None)
    if finding is not None:
        assert words in finding.detail
        assert finding.hint == findings_firewall.line(python.program)
    assert findings_firewall.suspect(Firewall(on=False), python, error) is None
    assert findings_firewall.suspect(None, python, error) is None


@pytest.mark.parametrize("stealth", [True, False])
def test_stealth_mode_is_named_where_nothing_answers(mac, stealth):
    """In stealth mode silence may also mean that nobody listens."""
    wall = Firewall(on=True, python=Verdict.PERMITTED, stealth=stealth)
    finding = findings_firewall.suspect(wall, Interpreter(orgs(mac)[0], "python.org", "3.13"), TimeoutError())
    assert ("stealth mode" in finding.detail) is stealth
