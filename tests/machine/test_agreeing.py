"""`stop`, `restart` and `disable` ask before they end what the proxy is doing, and ask nothing if that is nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from proxy.manage.machine import services
from proxy.manage.machine.launchd import OLLAMA, PROXY, Launchd, plist_path
from proxy.manage.machine.services import settings_environ
from proxy.settings.live_socket import live_socket
from proxy.terminal.printer import Printer
from tests.support.mac.fake_launchd import Agents, alive, until
from tests.support.mac.typed import typed

BUSY = {
    "exchanges": [{"phase": "queue", "device": "laptop", "peer": "100.64.0.7"}],
    "models": [{"name": "registry.ollama.ai/library/tiny:latest", "state": "loading", "seconds": 61.0}],
}
IDLE = {"exchanges": [], "models": []}
LOST = [
    "this would be lost",
    "  1 waiting request (laptop): answered with an error",
    "  the load of tiny:latest, after 1 min 1 s",
]

SHOWING = """
import http.server, json, os, socketserver, sys
class Shows(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        octets = json.dumps({**json.loads(sys.argv[2]), "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)
    def log_message(self, *_):
        pass
os.path.lexists(sys.argv[1]) and os.unlink(sys.argv[1])
with socketserver.UnixStreamServer(sys.argv[1], Shows) as server:
    server.serve_forever()
"""
"""A program that shows a state as the proxy does: proxy/serving/live.py. It listens on no port."""


class Owner:
    """A Mac whose proxy shows a state, and its owner at the keyboard."""

    def __init__(self, agents: Agents) -> None:
        self.agents = agents
        self.machine = agents.machine()
        self.launchd = Launchd(self.machine.uid, self.machine.run)
        self.questions: list[str] = []

    def runs(self, state: dict, port: int = 21500) -> int:
        """Have the proxy run and show a state on its socket; return its process."""
        path = Path(live_socket(port, settings_environ(self.machine)))
        path.parent.mkdir(mode=0o700, parents=True)
        self.agents.plist(PROXY, (sys.executable, "-S", "-c", SHOWING, str(path), json.dumps(state)))
        self.launchd.bootstrap(plist_path(PROXY, self.agents.home))
        until(path.exists)
        return self.launchd.state(PROXY).pid

    def types(self, *words: str, answer: str = "") -> tuple[int, list[str]]:
        """Type a command, and `answer` if there is a terminal; return its exit code and all that it prints."""

        def agree(_: Printer, question: str, otherwise: str) -> bool:
            self.questions += [question, otherwise]
            return answer == "y"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(services, "SETTLE_TIME", 0.2)
            if answer:
                patch.setattr(Printer, "agree", agree)
            done = typed(self.machine, self.agents.environ, *words)
        return done.code, [*done.err.splitlines(), *done.out.splitlines()]


@pytest.fixture
def owner():
    """Give an owner whose services end with the test, in a folder whose path is short enough for a socket below it."""
    with TemporaryDirectory() as folder:
        agents = Agents(Path(folder))
        yield Owner(agents)
        agents.close()


@pytest.mark.parametrize("verb", ["restart", "stop", "disable"])
def test_no(owner, verb):
    """An owner who doesn't agree has seen what would be lost, and nothing is changed; exit code 1."""
    pid = owner.runs(BUSY)
    assert owner.types(verb, "proxy", answer="n") == (1, [*LOST, "nothing was changed"])
    assert owner.questions == [f"{verb.capitalize()} anyway?", f"python -m proxy {verb} proxy --yes"]
    assert (owner.launchd.state(PROXY).pid, owner.launchd.state(PROXY).disabled) == (pid, False)


@pytest.mark.parametrize("verb", ["restart", "stop", "disable"])
def test_yes(owner, verb):
    """An owner who agrees gets what was asked for."""
    pid = owner.runs(BUSY)
    code, lines = owner.types(verb, "proxy", answer="y")
    assert (code, lines[:3]) == (0, LOST)
    assert not alive(pid)


@pytest.mark.parametrize("words", [["restart"], ["restart", "proxy"], ["restart", "proxy", "--now"], ["stop"]])
def test_no_terminal(owner, words):
    """Without a terminal to ask on nothing is changed, and the hint is the command that asks nothing; exit code 2."""
    pid = owner.runs(BUSY)
    which = "" if len(words) > 1 else " both"
    code, lines = owner.types(*words)
    assert (code, lines[-2 - len(LOST) : -len(LOST)]) == (
        2,
        ["error: there is no terminal to ask on", f"hint: python -m proxy {' '.join(words)}{which} --yes"],
    )
    assert lines[-len(LOST) :] == LOST
    assert owner.launchd.state(PROXY).pid == pid


@pytest.mark.parametrize("words", [["restart", "proxy", "--yes"], ["restart", "--now", "--yes"], ["disable", "--yes"]])
def test_scripts(owner, words):
    """With `--yes` nothing is asked."""
    pid = owner.runs(BUSY)
    code, lines = owner.types(*words)
    assert (code, [line for line in lines if "lost" in line]) == (0, [])
    assert not alive(pid)


def test_json(owner):
    """With `--json` the question goes to standard error; who doesn't agree gets an empty array."""
    owner.runs(BUSY)
    assert owner.types("stop", "proxy", "--json", answer="n") == (1, [*LOST, "nothing was changed", "[]"])


def test_nothing_to_lose(owner):
    """An idle proxy is restarted without a question, also without a terminal."""
    pid = owner.runs(IDLE)
    code, _ = owner.types("restart", "proxy")
    assert (code, alive(pid)) == (0, False)


def test_proxy_that_does_not_say(owner):
    """A proxy that shows no state, such as one of an older release, is restarted without a question."""
    owner.agents.plist(PROXY)
    owner.launchd.bootstrap(plist_path(PROXY, owner.agents.home))
    pid = owner.launchd.state(PROXY).pid
    code, _ = owner.types("restart", "proxy")
    assert (code, alive(pid)) == (0, False)


def test_another_port(owner):
    """A new port in the settings, for which the proxy is restarted, hides no one who waits."""
    owner.runs(BUSY, port=9)
    assert owner.types("restart", "proxy", answer="n")[1][:3] == LOST


def test_ollama_alone(owner):
    """A restart of Ollama ends its load, and those who wait in the proxy go on waiting."""
    owner.runs(BUSY)
    owner.agents.plist(OLLAMA)
    _, lines = owner.types("restart", "ollama", answer="n")
    assert lines == [LOST[0], LOST[2], "nothing was changed"]
