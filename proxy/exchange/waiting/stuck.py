"""Notice that Ollama is stuck: silent and idle, or answering without a token. Nothing is restarted."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy import PROGRAM
from proxy.policy.routes import Dialect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from proxy.exchange.message.tickets import Form
    from proxy.exchange.waiting.loads import Loads
    from proxy.exchange.waiting.visit import Visit

BYTES_A_SECOND = 200
"""Bytes of a body for which Ollama gets another second: a slow machine reads 50 tokens of a prompt a second."""

MINUTE = 60.0
"""Seconds over which Ollama's processor time is measured, while a request is overdue."""

IDLE = 0.05
"""Share of one processor below which Ollama counts as idle."""

EMPTY_ANSWERS = 3
"""Answers without a token in a row after which Ollama may be stuck. A model itself seldom gives so many."""

EMPTY_FOR = 600.0
"""Seconds for which they count. Ollama may have been restarted since, without another request."""

AGAIN = 600.0
"""Seconds between two lines about the same trouble."""

BLANK_EVENTS = 3
"""Events of a chat without a token: the role, the finish reason, and `[DONE]`."""

HINT = f"{PROGRAM} restart ollama"


class Silent(NamedTuple):
    """A request that Ollama has been silent about for too long."""

    id: str
    model: str
    seconds: float


class Sample(NamedTuple):
    """What was seen at one moment."""

    at: float
    used: Mapping[int, float] | None  # seconds of processor time, by process; None: it can't be seen
    overdue: frozenset[str]  # ids of requests


def patience(stuck_after: float, octets: int) -> float:
    """Return the seconds for which Ollama may be silent about a request with a body of so many bytes."""
    return stuck_after + octets / BYTES_A_SECOND if stuck_after else inf


def silent_in(
    visits: Iterable[Visit], loads: Loads, stuck_after: float, now: float, loading: Form | None
) -> list[Silent]:
    """Return the requests that Ollama has been silent about for too long, though their models are loaded."""
    silent = [
        (visit, ticket, visit.model.name, now - visit.heard)
        for visit in visits
        if visit.heard is not None and (ticket := visit.ticket) is not None and visit.model is not None
    ]
    late = [each for each in silent if each[3] >= patience(stuck_after, each[0].client.upload.size)]
    if late and not loads.settled(now):
        loads.look()
    return [
        Silent(visit.exchange.id, name, seconds)
        for visit, ticket, name, seconds in late
        if ticket.form.model in loads.listed and loading != ticket.form
    ]


def load(before: Sample, after: Sample) -> float | None:
    """Return how much of one processor was used between two samples; None if that can't be seen."""
    if before.used is None or after.used is None:
        return None
    used = sum(max(0.0, seconds - before.used.get(pid, 0.0)) for pid, seconds in after.used.items())
    return used / (after.at - before.at)


def is_blank(chunk: Mapping[str, Any]) -> bool:
    """Return whether a chunk of a chat or completion brings nothing of the answer."""
    choices = chunk.get("choices")
    parts = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    deltas = [each["delta"] for each in parts if isinstance(each.get("delta"), dict)]
    return not any(each.get("text") for each in parts) and not any(
        value for delta in deltas for key, value in delta.items() if key != "role"
    )


def is_empty(dialect: Dialect | None, tokens_out: int | None, events: int | None, *, blank: bool) -> bool:
    """Return whether a complete response with status 200 has no token; `blank` is whether no event brought one.

    A native response leaves out a count of 0, and a chat has counts only if the client asks for them.
    """
    if tokens_out is not None or dialect is None:
        return tokens_out == 0
    if dialect is Dialect.NDJSON:
        return True
    return dialect is Dialect.CHAT and blank and events is not None and events <= BLANK_EVENTS


class Watch:
    """Watches for signs that Ollama is stuck, and reports them with `note` and the command that helps."""

    def __init__(
        self,
        note: Callable[..., object],
        sample: Callable[[], Awaitable[Mapping[int, float] | None]] | None = None,
    ) -> None:
        """`sample` returns what Ollama's processes have used; None where they are on another machine."""
        self._note = note
        self._sample = sample
        self._overdue: dict[str, Silent] = {}
        self._before: Sample | None = None
        self._task: asyncio.Task[None] | None = None
        self._silence = ""  # what is wrong, if Ollama is silent and idle
        self._empty: dict[str, tuple[int, float]] = {}  # model -> empty answers in a row, and when the last one ended
        self._reported: dict[str, float] = {}  # trouble -> when it was logged

    def __repr__(self) -> str:
        looking = "" if self._task is None else ", looking"
        return f"<Watch {len(self._overdue)} overdue, {len(self._empty)} models with empty answers{looking}>"

    @property
    def doubts(self) -> bool:
        """Whether an answer with a token would change anything."""
        return bool(self._empty)

    def troubles(self, now: float) -> tuple[str, ...]:
        """Return what is wrong now, in words."""
        empty = [
            _words(model, count)
            for model, (count, at) in self._empty.items()
            if count >= EMPTY_ANSWERS and now - at < EMPTY_FOR
        ]
        return (*([self._silence] if self._silence else []), *empty)

    def tick(self, now: float, overdue: Sequence[Silent]) -> None:
        """Take the requests that are overdue; call it each second. Once a minute, look at what Ollama does."""
        self._overdue = {each.id: each for each in overdue}
        if not overdue:
            self._before, self._silence = None, ""
            self._reported.pop("", None)
        elif self._sample is not None and self._task is None and self._is_due(now):
            self._task = asyncio.create_task(self._look(now, self._sample))

    def _is_due(self, now: float) -> bool:
        return self._before is None or now - self._before.at >= MINUTE

    async def _look(self, now: float, sample: Callable[[], Awaitable[Mapping[int, float] | None]]) -> None:
        try:
            used = await sample()
        finally:
            self._task = None
        before, after = self._before, Sample(now, used, frozenset(self._overdue))
        self._before, self._silence = after, ""
        if before is None:
            return
        part = load(before, after)
        still = [each for each in self._overdue.values() if each.id in before.overdue]
        if part is None or part >= IDLE or not still:
            return
        longest = max(still, key=lambda each: each.seconds)
        self._silence = (
            f"{longest.model} has been silent for {longest.seconds / 60:.0f} min about a request, "
            f"and Ollama used {part:.1%} of a processor in the last minute"
        )
        self._report("", self._silence, now, request=longest.id)

    def answered(self, model: str, *, empty: bool, now: float) -> None:
        """Take a complete response of Ollama's with status 200 to a request that has a prompt."""
        if not empty:
            self._empty.pop(model, None)
            self._reported.pop(model, None)
            return
        count = self._empty.get(model, (0, now))[0] + 1
        self._empty[model] = (count, now)
        if count >= EMPTY_ANSWERS:
            self._report(model, _words(model, count), now)

    def _report(self, trouble: str, problem: str, now: float, **more: str) -> None:
        if now - self._reported.get(trouble, -inf) >= AGAIN:
            self._reported[trouble] = now
            self._note("ollama_stuck", problem=problem, hint=HINT, **more)

    async def close(self) -> None:
        """Cancel a measurement that is under way."""
        if self._task is not None:
            task = self._task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _words(model: str, count: int) -> str:
    return f"the last {count} answers of {model} had no token"
