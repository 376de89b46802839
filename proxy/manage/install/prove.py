"""The steps of an install that wait until both services answer, and prove that the proxy does what it is for."""

from __future__ import annotations

import http.client
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from proxy.manage.facts.ruled import says_so
from proxy.manage.findings.table import When, findings
from proxy.manage.machine.steps import Step, StepError
from proxy.manage.ollama.api import POLL, Ollama
from proxy.settings.addresses import joined
from proxy.terminal.finding import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.manage.facts.facts import Facts
    from proxy.settings.settings import Settings
    from proxy.terminal.finding import Finding

START_TIMEOUT = 60.0
"""Seconds until both must answer: Ollama looks for its GPU first, the proxy asks Tailscale for its address."""


def prove(facts: Facts) -> Iterator[Finding]:
    """Yield what is found of a proxy that was just installed."""
    return findings(facts, When.PROOF)


class OllamaAnswers(Step):
    """Wait until Ollama answers: connections are taken before it does."""

    def __init__(self, settings: Settings, seconds: float = START_TIMEOUT) -> None:
        self.ollama = Ollama(settings.upstream)
        self.title = f"wait until Ollama answers at {settings.upstream}"
        self.seconds = seconds

    def shown(self) -> Iterator[str]:
        """Yield what asks the same."""
        yield f"$ curl {self.ollama.url}/api/version"

    def done(self) -> bool:
        """Return whether it does."""
        return self.ollama.answers()

    def do(self) -> None:
        """Wait."""
        if not self.ollama.wait(self.seconds):
            raise StepError(f"no answer for {self.seconds:g} s", "tail ~/Library/Logs/remote-ollama-proxy/ollama.log")


def _noted(finding: Finding) -> str:
    """Return a finding as a line of an install that goes on; what helps stands in it where something is to be done."""
    help_ = f"; hint: {finding.hint}" if finding.outcome is Outcome.WARN and finding.hint else ""
    return f"{finding.name}: {finding.detail}{help_}"


def _wait(facts: Facts, address: str, seconds: float) -> None:
    """Wait until the proxy passes a request on, or refuses it by its access rules."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError, http.client.HTTPException):
            answer = facts.ask(address, facts.settings.port, "GET", "/api/version")
            if answer.status == http.HTTPStatus.OK or says_so(answer.status, answer.content):
                return
        time.sleep(POLL)


class Prove(Step):
    """Ask the installed proxy what a client would; a finding that fails is the step's failure."""

    title = "test it: an allowed request, a blocked one, and Ollama out of reach"

    def __init__(
        self,
        seen: Facts,
        proof: Callable[[Facts], Iterable[Finding]] = prove,
        seconds: float = START_TIMEOUT,
    ) -> None:
        self.seen, self.proof, self.seconds = seen, proof, seconds

    def shown(self) -> Iterator[str]:
        """Yield what asks the same."""
        port = self.seen.settings.port
        for address in self.seen.expected or ("TAILSCALE-ADDRESS",):
            where = joined(address, port)
            yield f"$ curl http://{where}/api/version"
            yield f"$ curl -X POST http://{where}/api/pull"
        yield f"$ lsof -nP -iTCP:{self.seen.upstream[1]} -sTCP:LISTEN -F pn"

    def do(self) -> None:
        """Wait for the first address, then look at all."""
        facts = self.seen.again()
        for address in facts.reachable[:1]:
            _wait(facts, address, self.seconds)
        found = list(self.proof(facts))
        for finding in found:
            if finding.outcome is Outcome.FAIL:
                log = f"tail {facts.machine.shown(facts.machine.logs)}/diagnostics.log"  # the command is taken back
                raise StepError(f"{finding.name}: {finding.detail}", log if finding.hint == facts.log else finding.hint)
        self.notes = tuple(_noted(finding) for finding in found)
