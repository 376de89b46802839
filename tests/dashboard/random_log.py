"""An access log of any length, with lines of every kind, made with the audit line's own writer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.exchange.message.exchange import Party, Phase, Record
from proxy.logs.audit import line
from proxy.logs.logfile import json_line, utc
from proxy.manage.verify.asking.asking import USER_AGENT
from proxy.policy.heads import RequestHead
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGINS = 1_788_220_800.0  # 2026-09-01T00:00:00Z
DAY = 86400.0
RUN = "c41f7a90"

DEVICES = tuple(f"device-{number}.tail1234.ts.net" for number in range(12))
MODELS = ("qwen3:8b", "gpt-oss:20b", "llama3.2:3b", "gemma3:27b", "tiny:latest", "coder:30b")
_CHAT = next(route for route in ROUTES if route.path == "/v1/chat/completions")
_REFUSED = (Reason.PATH_NOT_SERVED, Reason.ORIGIN_NOT_ALLOWED, Reason.METHOD_NOT_SERVED)


def head(path: str, agent: str) -> RequestHead:
    """Return the head of a POST."""
    fields = ((b"Host", b"mac:11434"), (b"User-Agent", agent.encode()))
    return RequestHead("POST", path, (1, 1), fields)


HEADS = tuple(head("/v1/chat/completions", agent) for agent in ("OpenAI/Python 3.54.0", "curl/8.5.0", "aider"))
PULL = head("/api/pull", "ollama/0.32.15")
VERIFYS = head("/v1/chat/completions", USER_AGENT)
VERIFYS_PULL = head("/api/pull", USER_AGENT)


@dataclass(frozen=True)
class Who:
    """A device in the tailnet."""

    device: str | None
    user: str | None


KNOWN = {name: Who(name, f"user-{number % 3}@example.com") for number, name in enumerate(DEVICES)}


def random_lines(count: int, *, seed: int = 1, begins: float = BEGINS, days: float = 90.0) -> Iterator[bytes]:
    """Yield `count` lines of so many days, each with its newline."""
    chance = random.Random(seed)
    step = days * DAY / max(1, count)
    for number in range(count):
        arrived_at = begins + number * step + chance.random() * min(step, 60.0)
        if chance.random() < 0.0005:
            gap = {"run": RUN, "seq": number + 1, "audit_gap": chance.randrange(1, 50)}
            yield json_line({"time": utc(arrived_at), **gap})
        else:
            yield line(_record(chance, number, arrived_at), RUN, number + 1)


def _record(chance: random.Random, number: int, arrived_at: float) -> Record:
    which = min(int(chance.expovariate(0.4)), len(DEVICES) - 1)
    usual: dict[str, Any] = {
        "id": f"{number:016x}",
        "peer": f"100.64.0.{which}",
        "peer_port": 50_000 + which,
        "arrived": 0.0,
        "arrived_at": arrived_at,
        "who": KNOWN[DEVICES[which]] if chance.random() < 0.97 else None,
    }
    kind = chance.random()
    if kind < 0.04:
        return _refused(chance, usual)
    if kind < 0.05:
        return Record(**usual, ended=0.2, ended_by=Party.DOWNSTREAM)  # no whole request came
    usual |= {"head": VERIFYS if kind < 0.06 else chance.choice(HEADS), "verdict": _CHAT, "request_octets": 900}
    return _served(chance, usual, kind)


def _refused(chance: random.Random, usual: dict[str, Any]) -> Record:
    reason = chance.choice(_REFUSED)
    asked = VERIFYS_PULL if chance.random() < 0.2 else PULL
    return Record(**usual, ended=0.001, head=asked, verdict=Refusal(reason, 403, "no"), status=403)


def _served(chance: random.Random, usual: dict[str, Any], kind: float) -> Record:
    model = chance.choice(MODELS)
    first = chance.lognormvariate(-0.5, 1.0)
    tokens = int(chance.lognormvariate(5.0, 1.0)) + 1
    ended = first + tokens / chance.lognormvariate(3.9, 0.4)
    waited = chance.expovariate(0.5) if chance.random() < 0.1 else None
    usual |= {"model": model, "waited": waited, "ended": ended, "status": 200}
    if kind < 0.09:
        return Record(**usual, phase=Phase.CONTENT, ended_by=Party.DOWNSTREAM, first_octet=first, stream=True, events=3)
    if kind < 0.10:
        more = {"phase": Phase.WAIT, "ended_by": Party.UPSTREAM, "reason": "upstream_closed"}
        return Record(**{**usual, "status": 502}, **more)
    if kind < 0.105:
        return Record(**usual, phase=Phase.CONTENT, ended_by=Party.PROXY, reason=Reason.CANCELLED, stream=True)
    stream = chance.random() < 0.9
    events = tokens + 2 if chance.random() < 0.95 else 3
    counted = {"tokens_in": chance.randrange(10, 8000), "tokens_out": tokens, "events": events if stream else None}
    full = chance.random() < 0.01
    return Record(**usual, first_octet=first, stream=stream, response_octets=9120, context_full=full, **counted)
