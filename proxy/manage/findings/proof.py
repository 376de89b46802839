"""Whether an installed proxy does what it is for, asked as a client asks: over the addresses that it listens on.

Harmless: nothing here loads a model, and the blocked request would change nothing even if it got through.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.manage.findings import firewall as findings_firewall
from proxy.manage.findings import ports as findings_ports
from proxy.manage.findings import stubs as findings_stubs
from proxy.manage.machine import environment
from proxy.manage.machine.launchd import PROXY
from proxy.manage.machine.services import plist_of, read_plist
from proxy.manage.machine.steps import Step, StepError
from proxy.settings.addresses import joined, parse, split
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from proxy.manage.findings.ports import Listener
    from proxy.manage.machine.machine import Machine
    from proxy.settings.settings import Settings

START_TIMEOUT = 60.0
"""Seconds until both must answer: Ollama looks for its GPU first, the proxy asks Tailscale for its address."""

_TIMEOUT = 10.0  # seconds for one answer
_POLL = 0.25
_ANSWER_LIMIT = 2**20  # bytes of an answer that are read


class Answer(NamedTuple):
    """What one is answered; `id` is the proxy's for the request, and empty in an answer of anyone else's."""

    status: int
    content: bytes
    id: str = ""


def ask(host: str, port: int, method: str, target: str, timeout: float = _TIMEOUT) -> Answer:
    """Return the answer to a request without content. OSError: no connection; HTTPException: no answer on it."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    connection.connect()
    try:
        connection.request(method, target, headers={"Host": f"localhost:{port}"})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(_ANSWER_LIMIT), answer.getheader("x-request-id", ""))
    except OSError as error:
        raise http.client.HTTPException(f"connected, but: {error}") from error
    finally:
        connection.close()


def answers(host: str, port: int, ask: Callable[..., Answer] = ask) -> bool:
    """Return whether Ollama's version is available there."""
    try:
        return ask(host, port, "GET", "/api/version").status == 200
    except (OSError, http.client.HTTPException):
        return False


def prove(
    machine: Machine, settings: Settings, addresses: Sequence[str], ask: Callable[..., Answer] = ask
) -> Iterator[Finding]:
    """Yield the result at each address: an allowed request answered, a blocked one blocked, Ollama out of reach."""
    host, upstream = split(settings.upstream)

    def suspect(error: BaseException) -> Finding | None:
        return suspect_firewall(machine, error) if answers(host, upstream, ask) else None

    for address in addresses:
        yield from served(address, settings.port, ask, None if parse(address).is_loopback else suspect)
        if upstream != settings.port and not parse(address).is_loopback:
            yield _refused(address, upstream)
    yield _own_address(findings_ports.listeners(machine, [upstream]), upstream)
    yield from findings_stubs.unusable(*(_told(host, upstream, path, ask) for path in ("/api/status", "/api/tags")))


def _told(host: str, port: int, path: str, ask: Callable[..., Answer]) -> Any:
    """Return what Ollama itself answers to a GET; None where that is no JSON."""
    try:
        answer = ask(host, port, "GET", path)
        return json.loads(answer.content) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _own_address(seen: Sequence[Listener] | None, port: int) -> Finding:
    """Return whether Ollama listens on loopback only, by what lsof shows; an empty list proves nothing."""
    name = "ollama's own address"
    if seen is None:
        return Finding(name, Outcome.SKIP, findings_ports.NO_LSOF)
    there = [each for each in seen if each.is_ollama or each.on_loopback]
    if not there:
        detail = f"no process of yours listens on port {port}: whose Ollama it is can't be seen"
        return Finding(name, Outcome.SKIP, detail, findings_ports.who_listens(port))
    beyond = [each for each in there if not each.on_loopback]
    if beyond:
        detail = f"Ollama listens on {beyond[0].address}:{port}, past the proxy"
        return Finding(name, Outcome.FAIL, detail, "launchctl print gui/$(id -u)/com.ollama")
    return Finding(name, Outcome.PASS, "Ollama listens on loopback only")


def suspect_firewall(machine: Machine, error: BaseException) -> Finding | None:
    """Return the firewall as the cause of a failed connection to the installed proxy; None where it can't be."""
    words = (read_plist(plist_of(machine, PROXY)) or {}).get("ProgramArguments")
    if not machine.is_mac or findings_firewall.symptom(error) is None or not words:
        return None
    python = environment.python_of(machine, words[0])
    return findings_firewall.suspect(findings_firewall.look(machine, python), python, error)


def served(
    address: str,
    port: int,
    ask: Callable[..., Answer] = ask,
    suspect: Callable[[BaseException], Finding | None] | None = None,
) -> Iterator[Finding]:
    """Yield whether an address answers an allowed request, and blocks a blocked one.

    `suspect` is asked for the cause of a connection that failed.
    """
    where = joined(address, port)
    for name, request, wanted in (
        ("an allowed request", ("GET", "/api/version"), 200),
        ("a blocked request", ("POST", "/api/pull"), 403),
    ):
        shown = f"{' '.join(request)} at {where}"
        try:
            answer = ask(address, port, *request)
        except (OSError, http.client.HTTPException) as error:
            detail = f"{shown}: no answer: {error or type(error).__name__}"
            hint = "tail ~/Library/Logs/remote-ollama-proxy/diagnostics.log"
            if suspect is not None and (cause := suspect(error)) is not None:
                detail, hint = f"{detail}; {cause.detail}", cause.hint
            yield Finding(name, Outcome.FAIL, detail, hint)
            continue
        if answer.status == wanted and (wanted != 403 or b"allowlist" in answer.content):
            yield Finding(name, Outcome.PASS, f"{shown}: {answer.status}")
        else:
            text = answer.content[:200].decode(errors="replace").strip()
            detail = f"{shown}: {answer.status} instead of {wanted}: {text}"
            yield Finding(name, Outcome.FAIL, detail, f"curl -i http://{where}/")


def _refused(host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), _TIMEOUT).close()
    except OSError:
        return Finding("ollama directly", Outcome.PASS, f"{host}:{port} takes no connection")
    detail = f"{host}:{port} takes connections, past the proxy"
    return Finding("ollama directly", Outcome.FAIL, detail, findings_ports.who_listens(port))


def wait_for(host: str, port: int, seconds: float = START_TIMEOUT) -> bool:
    """Return True as soon as Ollama's version is available there, or False after so many seconds."""
    end = time.monotonic() + seconds
    while not answers(host, port):
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL)
    return True


class OllamaAnswers(Step):
    """Wait until Ollama answers: connections are taken before it does."""

    def __init__(self, settings: Settings, seconds: float = START_TIMEOUT) -> None:
        self.host, self.port = split(settings.upstream)
        self.title = f"wait until Ollama answers at {settings.upstream}"
        self.seconds = seconds

    def shown(self) -> Iterator[str]:
        """Yield what asks the same."""
        yield f"$ curl http://{self.host}:{self.port}/api/version"

    def done(self) -> bool:
        """Return whether it does."""
        return answers(self.host, self.port)

    def do(self) -> None:
        """Wait."""
        if not wait_for(self.host, self.port, self.seconds):
            raise StepError(f"no answer for {self.seconds:g} s", "tail ~/Library/Logs/remote-ollama-proxy/ollama.log")

    def undo(self) -> None:
        """Do nothing: nothing was changed."""


def _noted(finding: Finding) -> str:
    """Return a finding as a line of an install that goes on; what helps stands in it where something is to be done."""
    help_ = f"; hint: {finding.hint}" if finding.outcome is Outcome.WARN and finding.hint else ""
    return f"{finding.name}: {finding.detail}{help_}"


class Prove(Step):
    """Ask the installed proxy what a client would; a finding that fails is the step's failure."""

    title = "prove it: allowed, blocked, and Ollama out of reach"

    def __init__(
        self,
        machine: Machine,
        settings: Settings,
        addresses: Sequence[str],
        proof: Callable[[Machine, Settings, Sequence[str]], Iterator[Finding]] = prove,
        seconds: float = START_TIMEOUT,
    ) -> None:
        self.machine, self.settings, self.addresses, self.proof = machine, settings, addresses, proof
        self.seconds = seconds

    def shown(self) -> Iterator[str]:
        """Yield what asks the same."""
        for address in self.addresses or ("TAILSCALE-ADDRESS",):
            host = f"[{address}]" if ":" in address else address
            yield f"$ curl http://{host}:{self.settings.port}/api/version"
            yield f"$ curl -X POST http://{host}:{self.settings.port}/api/pull"
        yield f"$ lsof -nP -iTCP:{split(self.settings.upstream)[1]} -sTCP:LISTEN -F pn"

    def do(self) -> None:
        """Wait for the first address, then ask all."""
        for address in self.addresses[:1]:
            wait_for(address, self.settings.port, self.seconds)
        found = list(self.proof(self.machine, self.settings, self.addresses))
        for finding in found:
            if finding.outcome is Outcome.FAIL:
                raise StepError(f"{finding.name}: {finding.detail}", finding.hint)
        self.notes = tuple(_noted(finding) for finding in found)

    def undo(self) -> None:
        """Do nothing: nothing was changed."""
