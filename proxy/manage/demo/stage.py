"""What a step of the tour works with, and how it is judged: by what it saw, and by the audit lines that it caused."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.manage.demo.callers import CallError
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from proxy.manage.demo.callers import Answer, Callers

AUDIT_PATIENCE = 30.0
"""Seconds that an access line may take to be written after the exchange has ended; it takes milliseconds."""


class UnmetError(Exception):
    """What a step saw is not what must hold; `str()` says what."""


@dataclass(slots=True)
class Stage:
    """What a step plays on."""

    proxy: str  # base URLs, without a final slash
    ollama: str
    callers: Callers  # of the proxy
    log: Path  # the proxy's access log
    say: Callable[[str], None]  # prints a line of the story
    kill_ollama: Callable[[], None]
    start_ollama: Callable[[], None]
    lines: list[dict[str, Any]] = field(default_factory=list)  # all audit lines that were read so far

    def audited(self, count: int) -> list[dict[str, Any]]:
        """Return the new audit lines, which must become `count`. Raises UnmetError."""
        deadline = time.monotonic() + AUDIT_PATIENCE
        before = len(self.lines)
        while len(self.lines) < before + count and time.monotonic() < deadline:
            self.catch_up()
            time.sleep(0.01)
        new = self.lines[before:]
        expect(len(new) == count, f"{len(new)} audit lines instead of {count}")
        return new

    def catch_up(self) -> None:
        """Read what the log holds by now, but for a line that is being written."""
        if self.log.exists():
            *whole, _ = self.log.read_text().split("\n")
            self.lines += [json.loads(line) for line in whole[len(self.lines) :]]


class Step(NamedTuple):
    """A step: its title, and what returns the details of its success or raises."""

    title: str
    run: Callable[[Stage], str]


def play(step: Step, stage: Stage) -> Finding:
    """Run a step; whatever it raises is a failure of it, and the tour goes on."""
    try:
        return Finding(step.title, Outcome.PASS, step.run(stage))
    except UnmetError as unmet:
        return Finding(step.title, Outcome.FAIL, str(unmet))
    except CallError as error:
        status = f" with {error.status}" if error.status else ""
        return Finding(step.title, Outcome.FAIL, f"the call failed{status}: {error}")
    except Exception as error:  # whatever else an SDK or a strange answer may cause
        return Finding(step.title, Outcome.FAIL, f"{type(error).__name__}: {error}")


def expect(condition: bool, otherwise: str) -> None:
    """Go on if `condition` holds. Raises UnmetError."""
    if not condition:
        raise UnmetError(otherwise)


def expect_audit(line: dict[str, Any], **wanted: object) -> None:
    """Go on if an audit line has these values. Raises UnmetError."""
    found = {key: line.get(key) for key in wanted}
    expect(found == wanted, f"the audit line says {found} instead of {wanted}")


def expect_refused(answer: Answer, status: int, words: str) -> None:
    """Go on if the proxy refused in its own words: Ollama's 403 is empty and its 405 is text. Raises UnmetError."""
    said = answer.message()
    expect(answer.status == status, f"answered with {answer.status} instead of {status}")
    expect(words in said, f"the message is {said!r}, without {words!r}")
