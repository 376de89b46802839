"""Play a step of the tour: ask its questions, then show one exchange, its access line, and what Ollama received.

A step believes neither the proxy nor its log alone. Each request that the access log calls allowed must have arrived at
Ollama, and nothing else may have, except for the proxy's own requests: which models there are, and to load one.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from proxy.manage.facts.log_end import last_lines
from proxy.manage.verify.questions.script import put_all
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from proxy.manage.verify.asking.asking import Asker
    from proxy.manage.verify.asking.session import Question, Result, Session

AUDIT_PATIENCE = 30.0  # seconds that an access line may take after the exchange has ended; it takes milliseconds
_AUDIT_KEYS = ("status", "reason", "ended", "model", "bytes_in", "bytes_out", "events", "tokens_in", "tokens_out")
# What the proxy itself asks of Ollama.
_OWN = {"GET /api/tags", "GET /api/ps", "GET /api/status", "POST /api/show", "POST /api/generate"}
_SHOWN = 230  # characters of a body: three lines
_EXCHANGE = re.compile(r"^[<>] (.*)(?:\n  [\w-]+: .*)*(?:\n  (\{.*))?", re.MULTILINE)
"""In a conversation: a request line or a status, and the body if it is JSON."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the tour: why it matters, and what is asked."""

    title: str
    why: str
    questions: tuple[Question, ...]
    shown: str = ""  # the question whose first exchange is shown; none: the step has one question, which shows its own


@dataclass(slots=True)
class Stage:
    """What a step works with."""

    session: Session  # asks the proxy
    direct: Asker  # asks Ollama
    log: Path  # the proxy's access log
    say: Callable[[str], None]  # prints a line of the story
    received: Callable[[], list[str]]  # each request that has reached Ollama, as METHOD TARGET
    kill_ollama: Callable[[], None]
    start_ollama: Callable[[], None]
    lines: int = field(default=0, init=False)  # of the log that were read so far

    def play(self, step: Step) -> Finding:
        """Play a step, and return what came of it. A fault doesn't end the tour."""
        self.say(f"  {step.why}")
        asker, direct = self.session.asker, self.direct
        asked, asked_directly, received = len(asker.asked), len(direct.asked), len(self.received())
        results = self._ask(step)
        faults = [f"{each.name}: {each.detail}".removeprefix(": ") for each in results if each.outcome == "fail"]
        count = sum(each.status is not None for each in asker.asked[asked:])
        lines = self._audited(count)
        if len(lines) != count:
            faults.append(f"{len(lines)} access lines instead of {count}")
        allowed = [line for line in lines if line.get("verdict") == "allowed"]
        sent = [line for line in allowed if line.get("reason") != "upstream_unreachable"]
        passed = [f"{line['method']} {line['path']}" for line in sent]
        passed += [f"{each.method} {each.target}" for each in direct.asked[asked_directly:]]
        arrived = [each.partition("?")[0] for each in self.received()[received:]]
        missing, more = Counter(passed) - Counter(arrived), Counter(arrived) - Counter(passed)
        if missing or more.keys() - _OWN:
            faults.append(f"Ollama received {_counted(arrived)}, and the access log says {_counted(passed)}")
        ids = next((result.ids[:1] for result in results if result.name == step.shown), ())
        for line in lines if not step.shown else [line for line in lines if line.get("id") in ids]:
            self.say(_audit_line(line))
        self.say(f"  Ollama received: {_counted(arrived)}")
        well = [result.detail for result in results if result.outcome == "pass"]
        summary = f"{len(well)} of {len(results)} questions pass" if step.shown else "".join(well)
        if not well and not faults:
            faults.append(f"no question could be asked: {results[0].detail}")
        return Finding(step.title, Outcome.FAIL if faults else Outcome.PASS, "; ".join(faults) or summary)

    def _ask(self, step: Step) -> list[Result]:
        """Ask a step's questions. Show each answer, in one line where several are the same, and the exchange."""
        results: list[Result] = []
        exchange: list[tuple[str, str]] = []
        asked = put_all(self.session, step.questions)
        for (outcome, detail), group in groupby(asked, lambda each: (each[0].outcome, each[0].detail)):
            names = []
            for result, talk in group:
                results.append(result)
                names.append(result.name)
                if step.shown and result.name == step.shown:
                    exchange = _EXCHANGE.findall("\n".join(talk))[:2]
            if step.shown:
                self.say(f"  - {', '.join(names)}: {'' if outcome == 'pass' else f'{outcome}, '}{detail}")
        for title, (line, body) in zip(("asked:", "answer:"), exchange, strict=False):
            self.say(f"  {title:<8}{line} {body[:_SHOWN]}{' ...' if body[_SHOWN:] else ''}")
        return results

    def _audited(self, count: int) -> list[dict[str, Any]]:
        """Return the new access lines, once there are `count`."""
        deadline = time.monotonic() + AUDIT_PATIENCE
        while len(new := last_lines(self.log)[self.lines :]) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        self.lines += len(new)
        return [json.loads(line) for line in new]


def _counted(requests: Iterable[str]) -> str:
    """Return requests for a reader, each with how often it came."""
    counts = Counter(requests)
    return ", ".join(f"{each} ({count})" if count > 1 else each for each, count in counts.items()) or "nothing"


def _audit_line(line: dict[str, Any]) -> str:
    """Return what of an access line fits into the story."""
    facts = " ".join(f"{key}={line[key]}" for key in _AUDIT_KEYS if key in line)
    return f"  audit: {line.get('verdict', '')} {line.get('method', '')} {line.get('path', '')} {facts}"
