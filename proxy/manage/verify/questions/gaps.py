"""Do tokens flow? A proxy that holds small pieces back, or all of them, gives itself away by when they arrive.

HAProxy without `http-no-delay` holds pieces for 80 to 220 ms, a cache or a scanner until the end. What counts is in how
many reads an answer comes: a busy machine or a far network merges some too, so nothing is judged by one look.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from proxy.manage.verify.asking.events import events
from proxy.manage.verify.asking.session import Doubt, Left, Question, Unmet, expect, seen
from proxy.manage.verify.questions.connection import ASKED
from proxy.manage.verify.questions.openai import OPENAI, name_of

if TYPE_CHECKING:
    from proxy.manage.verify.asking.asking import Asker
    from proxy.manage.verify.asking.session import Session

LOOKS = 3
"""How often a stream is looked at before one that looks held back counts as that."""

FEWEST = 8
"""Pieces of an answer, below which nothing is judged."""

HOLD = 0.05
"""Seconds of silence in a stream that a proxy must have added before it counts: less is the machine's own noise."""

_COUNTING = [{"role": "user", "content": "Count from 1 to 40, with a space between the numbers. Say nothing else."}]
_TOKENS = 48


@dataclass(frozen=True)
class Flow:
    """How an answer came: how many pieces in how many reads, and when."""

    pieces: int
    arrivals: tuple[float, ...]  # moments, each once
    took: float  # seconds from the request to the last of them

    @property
    def silences(self) -> tuple[float, ...]:
        """The seconds between one read and the next."""
        return tuple(after - before for before, after in zip(self.arrivals, self.arrivals[1:]))

    @property
    def spread(self) -> float:
        """The seconds from the first read to the last."""
        return self.arrivals[-1] - self.arrivals[0] if self.arrivals else 0.0

    @property
    def longest(self) -> float:
        """The longest of them."""
        return max(self.silences, default=0.0)

    @property
    def usual(self) -> float:
        """The median of them, which a stumble of the machine doesn't change."""
        return median(self.silences) if self.silences else 0.0

    @property
    def share(self) -> float:
        """How many reads there were for each piece: 1 when nothing is held."""
        return len(self.arrivals) / self.pieces if self.pieces else 1.0

    def __str__(self) -> str:
        return f"{self.pieces} pieces in {len(self.arrivals)} reads, at most {1000 * self.longest:.0f} ms apart"


def token_gaps(session: Session) -> str:
    """Pieces of a stream come one by one, as they come from Ollama itself where that can be asked."""
    return _beside(session, session.direct) if session.direct else _alone(session)


def _flow(session: Session, asker: Asker) -> Flow:
    """Return how an answer comes from `asker`."""
    began = time.monotonic()
    content = {"model": name_of(session), "messages": _COUNTING, "max_tokens": _TOKENS, "stream": True}
    answer = asker.ask("POST", "/v1/chat/completions", {**content, "temperature": 0, "seed": 1}, loads=True)
    expect(answer.status == 200, f"at {asker.authority}: {answer.shown}")
    expect(not answer.cut, f"at {asker.authority}: {answer.cut}")
    moments = [event.moment for event in events(answer.pieces) if _says(seen(event.json, "choices", 0, "delta"))]
    return Flow(len(moments), tuple(sorted(set(moments))), (moments[-1] if moments else time.monotonic()) - began)


def _says(delta: object) -> bool:
    return bool(seen(delta, "content") or seen(delta, "reasoning"))


# --- next to Ollama ---------------------------------------------------------------------------------------------------


def _beside(session: Session, direct: Asker) -> str:
    """Compare with Ollama's own answer; if that comes in lumps too, the comparison means nothing."""
    held = 0
    for _ in range(LOOKS):
        own, through = _flow(session, direct), _flow(session, session.asker)
        if own.pieces < FEWEST or through.pieces < FEWEST:
            raise Left(f"{session.asker.authority}: {through.pieces} pieces are too few to tell")
        detail = f"{through}; from Ollama itself {own}"
        if lumpy(own, through):
            held += 1
        elif own.share > 1 / 2:
            return detail
    if held < LOOKS - 1:
        return f"{detail}: too fast to say more, or this machine is too busy"
    shown = f"sudo lsof -nP -iTCP:{session.asker.port} -sTCP:LISTEN, and check that nothing on the way buffers"
    raise Unmet(f"the proxy holds a stream back: {detail}", shown)


def lumpy(own: Flow, through: Flow) -> bool:
    """Return whether `through` comes in lumps, and `own` doesn't: in half the reads, as a rule with longer silences."""
    if through.share >= own.share / 2:
        return False
    if len(through.arrivals) <= 2:
        return own.spread > 2 * HOLD  # else it was all said in a moment
    return through.usual > own.usual + HOLD


# --- with nothing to compare ------------------------------------------------------------------------------------------


def _alone(session: Session) -> str:
    """Judge a stream by itself: it came much later than it was made, or in lumps with regular silences."""
    fault: str | None = None
    for _ in range(LOOKS):
        flow = _flow(session, session.asker)
        if flow.pieces < FEWEST:
            raise Left(f"{flow.pieces} pieces are too few to tell")
        fault = _late(session, flow) or in_lumps(flow)
        if fault is None:
            return str(flow)
    slowest = _way_and_back(session)
    hint = (
        "`remote-ollama-proxy verify` on the Mac compares with Ollama itself, and shows whether the network does this"
    )
    if 3 * slowest > (flow.usual or flow.took):
        raise Doubt(f"{fault}; but the network itself takes up to {1000 * slowest:.0f} ms for a round trip", hint)
    raise Unmet(f"a stream is held back: {fault}", hint)


def _late(session: Session, flow: Flow) -> str | None:
    """Return what is wrong with an answer that came all at once though it took its time to be made."""
    if len(flow.arrivals) > 2:
        return None
    began = time.monotonic()
    content = {"model": name_of(session), "messages": _COUNTING, "max_tokens": 1}
    session.asker.ask("POST", "/v1/chat/completions", content, loads=True)
    making = flow.took - (time.monotonic() - began)  # what the further tokens took, which should have been seen coming
    if making < 10 * HOLD:
        return None
    return f"{flow.pieces} pieces came all at once, {making:.1f} s after the first could have"


def in_lumps(flow: Flow) -> str | None:
    """Return what is wrong with an answer that comes in lumps: three pieces a read and more, with silences between."""
    if len(flow.arrivals) < 3 or flow.share > 1 / 3 or flow.usual < HOLD:
        return None
    return f"pieces arrive several at a time: {flow}, {1000 * flow.usual:.0f} ms apart as a rule"


def _way_and_back(session: Session) -> float:
    """Return the seconds that the slowest of some small requests takes."""
    slowest = 0.0
    for _ in range(5):
        began = time.monotonic()
        session.asker.ask("GET", "/api/version")
        slowest = max(slowest, time.monotonic() - began)
    return slowest


GAPS_QUESTIONS = (Question(OPENAI, "token gaps", token_gaps, ASKED),)
