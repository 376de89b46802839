"""The tour: it holds, no step of it holds by itself, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proxy.command_line import cli
from proxy.manage.demo import command as demo
from proxy.manage.demo import stage as demo_stage
from proxy.manage.demo import steps as demo_steps
from proxy.manage.demo.stage import Stage, Step
from proxy.manage.demo.steps import steps
from proxy.manage.verify.asking.asking import Asked, Asker
from proxy.manage.verify.asking.session import Model, Question, Session, Unmet
from proxy.manage.verify.command import promised
from proxy.settings.settings import Settings
from proxy.terminal.finding import Outcome
from tests.support.patience import PATIENCE
from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent.parent
PROMISED = promised(Settings())
MESSAGE = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi @@tps=0@@"}]}


# --- a tour as a process ----------------------------------------------------------------------------------------------


class Tour:
    """`python -m proxy demo` as a process, in an environment that would lead it astray if it listened to it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder / "temporary"
        self.folder.mkdir()
        environ = {
            "TMPDIR": str(self.folder),
            "PYTHONPATH": str(folder),
            "PROXY_PORT": "1",
            "PROXY_ALLOW": "HEAD /",
            "HTTP_PROXY": "http://127.0.0.1:1",
            "http_proxy": "http://127.0.0.1:1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "demo", *arguments],
            cwd=ROOT,
            env=os.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.printed = ""

    def read_until(self, words: str) -> str:
        """Read the story up to the line that has `words`, which must come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if words in line:
                return line
        raise AssertionError(f"{words!r} never came: {self.printed}")

    def end(self) -> int:
        """Read the rest of the story and return the exit code."""
        self.printed += self.process.communicate(timeout=4 * PATIENCE)[0]  # a tour takes ten seconds
        return self.process.returncode

    def left_behind(self) -> list[str]:
        """Name what is still there of the processes, their ports and their files."""
        left = [str(path) for path in self.folder.rglob("*")]
        found = re.findall(r"127\.0\.0\.1:(\d+)  process (\d+)", self.printed)
        assert len(found) == 2
        for port, pid in found:
            with suppress(ProcessLookupError):
                os.kill(int(pid), 0)
                left.append(f"process {pid}")
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", int(port))) == 0:
                    left.append(f"port {port}")
        return left


@pytest.fixture
def tour(tmp_path):
    """Return a function that starts a tour; it is ended with the test."""
    tours = []

    def start(*arguments: str) -> Tour:
        tours.append(Tour(tmp_path, *arguments))
        return tours[-1]

    yield start
    for each in tours:
        if each.process.poll() is None:
            each.process.terminate()
            each.end()


def outcomes(printed: str) -> list[str]:
    """Return the outcome of each step of a story."""
    return re.findall(r"^  ([A-Z]+): ", printed, re.MULTILINE)


def test_tour_holds_and_can_be_kept(tour):
    """Every step holds in the story; kept, the tour serves at the address that it prints, until Ctrl-C."""
    kept = tour("--keep")
    address = kept.read_until("ANTHROPIC_BASE_URL=").partition("=")[2].strip()
    story = kept.printed.partition("Both keep running")[0]
    assert outcomes(story) == ["PASS"] * 11, story
    assert max(map(len, story.splitlines())) <= 80
    assert "\x1b" not in story
    assert len(re.findall(r"^ +\d+\.\d\d s  \S+$", story, re.MULTILINE)) == 10
    assert "Ollama received: nothing" in story.partition("6. ")[2].partition("7. ")[0]
    assert kept.read_until("openai-api-base:").strip() == f"openai-api-base: {address}/v1"
    kept.read_until("tail -f")
    answer = Asker("127.0.0.1", urlsplit(address).port).ask("POST", "/v1/messages", MESSAGE)
    assert answer.json["content"] == [{"type": "text", "text": "Are of"}]
    kept.process.send_signal(signal.SIGINT)
    assert kept.end() == 0
    assert kept.left_behind() == []


def test_tour_that_is_ended_leaves_nothing(tour):
    """A tour that is ended in the middle leaves no process and no file."""
    ended = tour()
    ended.read_until("3. ")
    ended.process.terminate()
    assert ended.end() == 1
    assert ended.left_behind() == []


# --- how it ends ------------------------------------------------------------------------------------------------------


def run(*, keep: bool = False) -> int:
    """Give the tour in this process."""
    return cli.main(["demo", *(["--keep"] if keep else [])])


def played(*functions):
    """Return the steps of a tour that has only these scenes."""
    return lambda stage: tuple(Step(each.__name__, "", (Question("", "", partial(each, stage)),)) for each in functions)


def test_step_that_fails_fails_the_tour(monkeypatch, capsys):
    """A step that does not hold is reported, the others are still played, and the exit code is 1."""

    def fails(stage: Stage, session: Session) -> str:
        raise Unmet("this does not hold")

    monkeypatch.setattr(demo, "steps", played(fails, lambda stage, session: "this does"))
    before = signal.getsignal(signal.SIGTERM)
    assert run() == 1
    printed = capsys.readouterr().out
    assert "FAIL: this does not hold" in printed
    assert "PASS: this does" in printed
    assert "1 of 2 steps hold" in printed
    assert "listening" in printed  # the last words of both processes
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.process
def test_process_that_does_not_start_ends_the_tour(monkeypatch, capsys):
    """A process that can't be started is an error with a hint, and exit code 1."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert run() == 1
    assert re.match(r"error: the simulated Ollama did not start: .*\nhint: ", capsys.readouterr().err)


def test_process_that_ends_ends_a_kept_tour(monkeypatch, capsys):
    """A kept tour doesn't go on with half of it gone."""

    def kill(stage: Stage, session: Session) -> str:
        stage.kill_ollama()
        return "killed"

    monkeypatch.setattr(demo, "steps", played(kill))
    assert run(keep=True) == 1
    assert "the simulated Ollama ended by itself" in capsys.readouterr().err


# --- what is compared -------------------------------------------------------------------------------------------------

ALLOWED = '{"verdict":"allowed","method":"GET","path":"/a"}\n'
REFUSED = '{"verdict":"refused","method":"GET","path":"/a"}\n'
AWAY = '{"verdict":"allowed","method":"GET","path":"/a","reason":"upstream_unreachable"}\n'


@pytest.mark.parametrize(
    ("log", "received", "fault"),
    [
        pytest.param(ALLOWED, ["GET /a"], "", id="allowed_and_arrived"),
        pytest.param(ALLOWED, ["GET /a?q=1"], "", id="query_is_not_logged"),
        pytest.param(REFUSED, [], "", id="refused"),
        pytest.param(AWAY, [], "", id="ollama_away"),
        pytest.param(ALLOWED, [], "Ollama received nothing, and the access log says GET /a", id="never_arrived"),
        pytest.param(REFUSED, ["GET /a"], "Ollama received GET /a, and the access log says nothing", id="leaked"),
        pytest.param(ALLOWED, ["GET /a"] * 2, "Ollama received GET /a (2), and", id="sent_twice"),
        pytest.param("", [], "0 access lines instead of 1", id="no_line"),
        pytest.param(REFUSED * 2, [], "2 access lines instead of 1", id="line_too_many"),
        pytest.param(REFUSED[:-1], [], "0 access lines instead of 1", id="half_a_line"),
    ],
)
def test_log_and_ollama_must_agree(log, received, fault, tmp_path, monkeypatch):
    """A request has one access line, and reaches Ollama if the line says that it was allowed."""
    monkeypatch.setattr(demo_stage, "AUDIT_PATIENCE", 0.0)
    asker, direct = Asker("127.0.0.1", 1), Asker("127.0.0.1", 2)
    path, arrived = tmp_path / "access.log", []

    def ask(session: Session) -> str:
        asker.asked.append(Asked("a", "GET", "/a", 200, True))
        path.write_text(log)
        arrived.extend(received)
        return "well"

    stage = Stage(Session(asker, PROMISED), direct, path, print, lambda: arrived, print, print)
    finding = stage.play(Step("a step", "", (Question("", "", ask),)))
    assert finding.outcome is (Outcome.FAIL if fault else Outcome.PASS)
    assert finding.detail.startswith(fault or "well")


# --- no step holds by itself ------------------------------------------------------------------------------------------


@pytest.fixture
def ollama(tmp_path):
    """Give a simulated Ollama as a process."""
    child, _ = demo._children(tmp_path)
    child.start()
    yield child
    child.end()


@pytest.fixture
def stage(ollama, tmp_path, monkeypatch):
    """Return a function that makes a stage on which something else stands in the proxy's place."""
    monkeypatch.setattr(demo_stage, "AUDIT_PATIENCE", 0.1)

    def make(port: int, log: Path = tmp_path / "access.log") -> Stage:
        session = Session(Asker("127.0.0.1", port), PROMISED)
        session.connected = session.is_proxy = session.guarded = True
        session.release, session.model = (0, 32, 15), Model("tiny", 1, ("completion",))
        return Stage(
            *(session, Asker("127.0.0.1", ollama.port), log, lambda line: None, list),
            kill_ollama=lambda: ollama.end(kill=True),
            start_ollama=ollama.start,
        )

    return make


def outcome(title: str, stage: Stage) -> str:
    """Play the step of that title, which must fail, and return why it did."""
    (step,) = [each for each in steps(stage) if each.title.startswith(title)]
    finding = stage.play(step)
    assert finding.outcome is Outcome.FAIL, finding.detail
    return finding.detail


@pytest.mark.parametrize(
    ("title", "why"),
    [
        pytest.param("The proxy answers", "from the proxy: this is Ollama itself", id="connection"),
        pytest.param("All others", "POST /api/pull: it is not blocked", id="blocked"),
        pytest.param("Strangers", "foreign Host: `GET /api/version` was answered with 403,", id="strangers"),
        pytest.param("Listed requests", "^0 access lines instead of 8$", id="log"),
        pytest.param("Ollama dies", "of 200 tokens the client reads ''", id="ollama_dies"),
    ],
)
def test_steps_fail_without_a_proxy(title, why, ollama, stage):
    """Ollama alone passes no step."""
    assert re.search(why, outcome(title, stage(ollama.port)))


def test_steps_fail_with_an_open_row(ollama, stage, tmp_path):
    """A proxy that lets through one thing more than it promised fails the step that is about it."""
    port = free_port()
    environ = {"LISTEN": "127.0.0.1", "PORT": str(port), "UPSTREAM": ollama.url, "ALLOW": "HEAD /api/tags"}
    environ |= {"ACCESS_LOG": str(tmp_path / "access.log"), "CONFIG": str(tmp_path / "config.toml")}
    settings = {f"PROXY_{name}": value for name, value in environ.items()}
    child = demo.Child("a proxy", tmp_path, "proxy", port=port, **settings)
    child.start()
    try:
        why = outcome("All others", stage(child.port))
    finally:
        child.end()
    assert "rows that are closed: `HEAD /api/tags` was answered with 200, and is not open" in why


def test_step_that_asks_nothing_fails(ollama, stage):
    """A step whose questions were all left out has shown nothing."""
    silent = stage(ollama.port)
    silent.session.connected = False
    assert outcome("Anthropic", silent).startswith("no question could be asked: there is no answer from")


class Forwarder:
    """A bad proxy: hands bytes to Ollama and back.

    `deaf` doesn't notice that its client has gone.
    """

    def __init__(self, upstream: int, *, deaf: bool) -> None:
        self._upstream = ("127.0.0.1", upstream)
        self._deaf = deaf
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open = [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                self._open.append(client)
                try:
                    upstream = socket.create_connection(self._upstream)
                except OSError:
                    self._end(client)
                    continue
                self._open.append(upstream)
                threading.Thread(target=self._there, args=(client, upstream), daemon=True).start()
                threading.Thread(target=self._back, args=(upstream, client), daemon=True).start()

    def _there(self, client: socket.socket, upstream: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                upstream.sendall(data)
        if not self._deaf:
            self._end(upstream)

    def _back(self, upstream: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := upstream.recv(65536):
                with suppress(OSError):
                    client.sendall(data)
        self._end(client)

    @staticmethod
    def _end(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End every connection."""
        for sock in self._open:
            self._end(sock)
            sock.close()


@pytest.mark.parametrize(
    ("title", "deaf", "why"),
    [
        pytest.param("A streamed chat", False, "0 access lines", id="all_but_the_log"),
        pytest.param("A client hangs up", True, "Ollama still hadn't answered anyone", id="deaf"),
        pytest.param("Ollama dies", False, "of 200 tokens the client reads ''", id="cut_without_a_word"),
    ],
)
def test_steps_fail_with_a_bad_proxy(title, deaf, why, ollama, stage, monkeypatch):
    """A proxy that leaves no line, doesn't close a stream whose client hung up, or doesn't say what broke, fails."""
    monkeypatch.setattr(demo_steps, "SERVED", 1.0)
    forwarder = Forwarder(ollama.port, deaf=deaf)
    try:
        assert why in outcome(title, stage(forwarder.port))
    finally:
        forwarder.close()


@pytest.mark.parametrize(
    ("mode", "extra", "why"),
    [
        pytest.param(0o644, "", "its mode is 0644", id="readable_by_others"),
        pytest.param(0o600, '{"path":"/v1/messages?beta=true"}\n', "it holds 'beta=true'", id="a_query"),
        pytest.param(0o600, '{"user_agent":"Bearer unused"}\n', "it holds 'unused'", id="a_credential"),
        pytest.param(0o600, '{"model":"Count for me"}\n', "it holds 'Count'", id="a_prompt"),
        pytest.param(0o600, '{"model":"may sound see many"}\n', "it holds 'sound see many'", id="an_answer"),
        pytest.param(0o600, '{"id":"a"}\n', "1 of 1 requests have more than one line", id="a_second_line"),
        pytest.param(0o600, '{"id":"a","prompt":1}\n', "1 of 1 requests have more than one line", id="another_key"),
    ],
)
def test_log_that_holds_too_much_fails(mode, extra, why, stage, tmp_path):
    """The log's step fails over a log that others can read, or that holds what must not be in it."""
    log = tmp_path / "a.log"
    log.write_text('{"id":"a"}\n' + extra)
    log.chmod(mode)
    made = stage(1, log)
    made.session.asker.asked.append(Asked("a", "GET", "/", 200, True))
    assert why in outcome("The access log", made)


def test_proxy_that_is_gone_fails_the_step(stage):
    """What can't be asked is a fault of the step, not an error of the tour."""
    assert "nothing listens at 127.0.0.1:1" in outcome("A streamed chat", stage(1))
