"""The tour: it holds, no step of it holds by itself, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from proxy.command_line import cli
from proxy.manage.demo import command as demo
from proxy.manage.demo import stage as demo_stage
from proxy.manage.demo import steps as demo_steps
from proxy.manage.demo.callers import KEY, RawCallers, ask
from proxy.manage.demo.stage import Stage, Step, UnmetError, play
from proxy.manage.demo.steps import STEPS
from proxy.terminal.finding import Outcome
from tests.support.patience import PATIENCE
from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent.parent


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


def test_tour_with_the_sdks_holds_and_can_be_kept(tour):
    """Every step holds with the real SDKs; kept, it serves at the address that it prints, until Ctrl-C."""
    kept = tour("--keep")
    address = kept.read_until("ANTHROPIC_BASE_URL=").partition("=")[2].strip()
    assert outcomes(kept.printed) == ["PASS"] * len(STEPS), kept.printed
    assert re.search(r"openai \d.*anthropic \d.*ollama \d", kept.printed)
    assert kept.read_until("OPENAI_API_BASE=").strip() == f"export OPENAI_API_BASE={address}/v1"
    kept.read_until("tail -f")
    turn = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi @@tokens=2 tps=0@@"}]}
    answer = ask(address, "POST", "/v1/messages", turn)
    assert json.loads(answer.content)["content"] == [{"type": "text", "text": "Are of"}]
    kept.process.send_signal(signal.SIGINT)
    assert kept.end() == 0
    assert kept.left_behind() == []


def test_tour_without_the_sdks_holds_and_says_so(tour, tmp_path):
    """Without the SDKs the same steps hold over raw HTTP, and the story says so.

    It fits 80 columns without colour, shows tokens with times, and has an audit line for each request.
    """
    (tmp_path / "openai.py").write_text("raise ImportError")
    raw = tour()
    assert raw.end() == 0
    assert outcomes(raw.printed) == ["PASS"] * len(STEPS), raw.printed
    assert "SDKs are not installed" in raw.printed
    assert raw.left_behind() == []
    assert max(map(len, raw.printed.splitlines())) <= 80
    assert "\x1b" not in raw.printed
    assert len(re.findall(r"^ +\d+\.\d\d s  \S+$", raw.printed, re.MULTILINE)) == 16
    lines = int(re.search(r"PASS: (\d+) lines", raw.printed)[1])
    assert len(re.findall(r"^  audit: (?:allowed|refused) ", raw.printed, re.MULTILINE)) == lines


def test_tour_that_is_ended_leaves_nothing(tour):
    """A tour that is told to end in the middle takes its processes and files along."""
    ended = tour()
    ended.read_until("2. ")
    ended.process.terminate()
    assert ended.end() == 1
    assert ended.left_behind() == []


# --- how it ends ------------------------------------------------------------------------------------------------------


def run(*, keep: bool = False) -> int:
    """Give the tour in this process."""
    return cli.main(["demo", *(["--keep"] if keep else [])])


@pytest.fixture
def raw(monkeypatch):
    """Make the callers raw: importing the SDKs takes a second."""
    monkeypatch.setattr(demo, "_callers", RawCallers)


def test_step_that_fails_fails_the_tour(raw, monkeypatch, capsys):
    """One step that does not hold is told of, the others are still played, and the exit code is 1."""

    def fails(stage: Stage) -> str:
        raise UnmetError("this does not hold")

    monkeypatch.setattr(demo, "STEPS", (Step("one", fails), Step("two", lambda stage: "this does")))
    before = signal.getsignal(signal.SIGTERM)
    assert run() == 1
    printed = capsys.readouterr().out
    assert "FAIL: this does not hold" in printed
    assert "PASS: this does" in printed
    assert "1 of 2 steps hold" in printed
    assert "listening" in printed  # the last words of both processes
    assert signal.getsignal(signal.SIGTERM) == before


def test_process_that_does_not_start_ends_the_tour(monkeypatch, capsys):
    """A process that can't be started is an error with a hint, and exit code 1."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert run() == 1
    assert re.match(r"error: the simulated Ollama did not start: .*\nhint: ", capsys.readouterr().err)


def test_process_that_ends_ends_a_kept_tour(raw, monkeypatch, capsys):
    """A kept tour doesn't go on with half of it gone."""

    def kill(stage: Stage) -> str:
        stage.kill_ollama()
        return "killed"

    monkeypatch.setattr(demo, "STEPS", (Step("kill", kill),))
    assert run(keep=True) == 1
    assert "the simulated Ollama ended by itself" in capsys.readouterr().err


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

    def make(base: str, log: Path = tmp_path / "access.log") -> Stage:
        return Stage(
            proxy=base,
            ollama=ollama.url,
            callers=RawCallers(base),
            log=log,
            say=lambda line: None,
            kill_ollama=lambda: ollama.end(kill=True),
            start_ollama=ollama.start,
        )

    return make


def outcome(step, stage: Stage) -> str:
    """Play a step that must fail, and return why it did."""
    finding = play(Step("it", step), stage)
    assert finding.outcome is Outcome.FAIL, finding.detail
    return finding.detail


@pytest.mark.parametrize(
    ("step", "why"),
    [
        pytest.param(demo_steps.models, "0 audit lines", id="models"),
        pytest.param(demo_steps.coding_client, "HEAD / is not refused", id="coding_client"),
        pytest.param(demo_steps.blocked_pull, "the pull was let through|with 500 instead of 403", id="blocked_pull"),
        pytest.param(demo_steps.wrong_method, "this path accepts POST", id="wrong_method"),
        pytest.param(demo_steps.path_tricks, "reached Ollama, and plain:latest is gone", id="path_tricks"),
        pytest.param(demo_steps.ollama_dies, "did not learn what happened", id="ollama_dies"),
    ],
)
def test_steps_fail_without_a_proxy(step, why, ollama, stage):
    """Ollama alone passes no step that is about what a proxy does."""
    assert re.search(why, outcome(step, stage(ollama.url)))


@pytest.mark.parametrize(
    ("allow", "step", "why"),
    [
        pytest.param("HEAD /", demo_steps.coding_client, "HEAD / is not refused", id="probe"),
        pytest.param("HEAD /api/tags", demo_steps.wrong_method, "Allow is GET, HEAD", id="method"),
    ],
)
def test_steps_fail_with_an_open_row(allow, step, why, ollama, stage, tmp_path):
    """A proxy that lets through one thing more fails the step that is about it."""
    port = free_port()
    environ = {"LISTEN": "127.0.0.1", "PORT": str(port), "UPSTREAM": ollama.url, "ALLOW": allow}
    environ |= {"ACCESS_LOG": str(tmp_path / "access.log"), "CONFIG": str(tmp_path / "config.toml")}
    settings = {f"PROXY_{name}": value for name, value in environ.items()}
    child = demo.Child("a proxy", tmp_path, "proxy", port=port, **settings)
    child.start()
    try:
        assert why in outcome(step, stage(child.url))
    finally:
        child.end()


class Forwarder:
    """A bad proxy: hands bytes to Ollama and back.

    `holding` keeps the answer back until it is whole; `deaf` doesn't notice that its client has gone.
    """

    def __init__(self, upstream: str, *, holding: bool = False, deaf: bool = False) -> None:
        place = urlsplit(upstream)
        self._upstream = (place.hostname, place.port)
        self._holding, self._deaf = holding, deaf
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
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
        held = b""
        with suppress(OSError):
            while data := upstream.recv(65536):
                held += data
                if not self._holding or held.endswith(b"0\r\n\r\n"):
                    with suppress(OSError):
                        client.sendall(held)
                    held = b""
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
    ("fault", "step", "why"),
    [
        pytest.param({}, demo_steps.streamed_chat, "0 audit lines", id="all_but_the_log"),
        pytest.param({"holding": True}, demo_steps.streamed_chat, "held back", id="holding"),
        pytest.param({}, demo_steps.hang_up, "0 audit lines", id="leaves_with_its_client"),
        pytest.param({"deaf": True}, demo_steps.hang_up, "Ollama still speaks to nobody", id="deaf"),
        pytest.param({}, demo_steps.ollama_dies, "did not learn what happened", id="cut_without_a_word"),
    ],
)
def test_steps_fail_with_a_bad_proxy(fault, step, why, ollama, stage, monkeypatch):
    """A proxy that holds tokens back, doesn't tell Ollama of a hang-up, or doesn't say what broke, fails."""
    monkeypatch.setattr(demo_steps, "_SERVED", 1.0 if "deaf" in fault else PATIENCE)
    forwarder = Forwarder(ollama.url, **fault)
    try:
        assert why in outcome(step, stage(forwarder.url))
    finally:
        forwarder.close()


@pytest.mark.parametrize(
    ("mode", "extra", "why"),
    [
        pytest.param(0o644, "", "its mode is 0644", id="readable_by_others"),
        pytest.param(0o600, '{"path":"/v1/messages?beta=true"}\n', "it holds 'beta=true'", id="a_query"),
        pytest.param(0o600, f'{{"user_agent":"{KEY}"}}\n', f"it holds '{KEY}'", id="a_credential"),
        pytest.param(0o600, '{"model":"Count for me"}\n', "it holds 'Count for me'", id="a_prompt"),
        pytest.param(0o600, '{"model":"may sound see many"}\n', "it holds 'sound see many'", id="an_answer"),
    ],
)
def test_log_that_tells_too_much_fails(mode, extra, why, stage, tmp_path):
    """The log's step fails over a log that others can read, or that holds what must not be in it."""
    log = tmp_path / "a.log"
    log.write_text('{"path":"/"}\n' * 3 + extra)
    log.chmod(mode)
    assert why in outcome(demo_steps.access_log, stage("http://127.0.0.1:1", log))


def test_audit_lines_are_counted(stage, tmp_path):
    """A line too many, one too few, and one that is not finished are noticed."""
    log = tmp_path / "a.log"
    log.write_text('{"status":1}\n{"status":2}\n{"stat')
    audited = stage("http://127.0.0.1:1", log).audited
    with pytest.raises(UnmetError, match="2 audit lines instead of 1"):
        audited(1)
    with pytest.raises(UnmetError, match="0 audit lines instead of 1"):
        audited(1)
    with log.open("a") as more:
        more.write('us":"\\u2028\u2028"}\n')
    assert audited(1) == [{"status": "\u2028\u2028"}]


def test_callers_that_fail_in_odd_ways_fail_the_step(stage):
    """Whatever a step raises is told of as its failure."""
    assert "ConnectionRefusedError" in outcome(demo_steps.wrong_method, stage("http://127.0.0.1:1"))
