"""The machine that serves: a simulated Ollama on loopback, the proxy in front of it, and what both of them say."""

from __future__ import annotations

import json
import sys
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.mac.fake_launchd import until

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from tests.tailnet.machines import Machine, Program

OLLAMA = ("127.0.0.1", 11434)
PORT = 11434


def story(seconds: int) -> dict[str, Any]:
    """Return the content of a chat request whose answer streams for so long, ten tokens a second."""
    said = f"@@tokens={10 * seconds} tps=10@@"  # an order to the simulated Ollama
    message = {"role": "user", "content": said}
    return {"model": "plain", "stream": True, "max_tokens": 1000, "messages": [message]}


class Finding(NamedTuple):
    """What one of our commands found."""

    name: str
    outcome: str
    detail: str
    hint: str

    @property
    def is_bad(self) -> bool:
        """Whether something is wrong."""
        return self.outcome in {"warn", "fail"}


class Served:
    """A machine of a tailnet that serves. No option is set unless a test does."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.settings = machine.folder / ".config/remote-ollama-proxy/config.toml"
        self.settings.parent.mkdir(parents=True)
        self.settings.touch()
        self.access_log = machine.folder / ".local/state/remote-ollama-proxy/access.log"
        self.program: Program

    @property
    def addresses(self) -> set[tuple[str, int]]:
        """Where the proxy listens when all is well."""
        return {(self.machine.ipv4, PORT), (self.machine.ipv6, PORT)}

    def start(self, **environ: str) -> None:
        """Start Ollama and the proxy."""
        self.machine.start(sys.executable, "-m", "proxy.simulated_ollama", said="ollama")
        until(lambda: OLLAMA in self.machine.listens())
        self.program = self.machine.start(sys.executable, "-m", "proxy", said="proxy", **environ)

    def serve(self, **environ: str) -> None:
        """Start both, and wait until the proxy listens on both addresses."""
        self.start(**environ)
        until(lambda: self._runs() and self.addresses <= self.machine.listens())

    def _runs(self) -> bool:
        assert not self.program.ended, self.program.text()
        return True

    def wait_for(self, *listened: tuple[str, int]) -> None:
        """Wait until exactly these sockets listen in the machine."""
        until(lambda: self.machine.listens() == set(listened))

    def lines(self, **wanted: object) -> list[dict[str, Any]]:
        """Return the lines of the access log that have these values."""
        whole = self.access_log.read_text().split("\n")[:-1] if self.access_log.exists() else []
        return [line for line in map(json.loads, whole) if wanted.items() <= line.items()]

    def line(self, **wanted: object) -> dict[str, Any]:
        """Return the last line of the access log with these values, once there is one."""
        return until(lambda: self.lines(**wanted))[-1]

    def said(self, event: str) -> list[str]:
        """Return the lines of the diagnostics with an event."""
        return [line for line in self.program.text().splitlines() if event in line.split()]

    def findings(self, *command: str) -> list[Finding]:
        """Return what `--check`, `status` or `verify` finds in the machine."""
        return findings(self.machine, *command)


def findings(machine: Machine, *command: str) -> list[Finding]:
    """Return what one of our commands finds on a machine."""
    done = machine.proxy(*command, "--json")
    try:
        reported = json.loads(done.stdout)
    except ValueError:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}") from None
    listed = reported["findings"] if isinstance(reported, dict) else reported
    return [Finding(*(each.get(key) or "" for key in ("name", "outcome", "detail", "hint"))) for each in listed]


def asks(machine: Machine, address: str, port: int = PORT, path: str = "/v1/models", **fields: str) -> int:
    """Return the status of the answer to a request that a machine makes; 0 where no answer comes."""
    try:
        answer = machine.request("GET", address, path, port=port, **fields)
        answer.read()
    except (OSError, HTTPException):
        return 0
    return answer.status


def stream(machine: Machine, served: Served) -> HTTPResponse:
    """Return an answer that has begun to stream, and will for 15 seconds."""
    answer = machine.request("POST", served.machine.ipv4, "/v1/chat/completions", story(15))
    assert answer.status == 200
    assert answer.readline().startswith(b"data: ")
    return answer
